//! Custom operators: a name, typed attributes, and a body in standard operators that is its specification.

use crate::{Attribute, DType, Scope, TensorType, Value, ValueList, arena::Function, emit::Emit, value::POISON};
use densessm_proto::Lowering;
use std::panic::Location;

/// An operator of our own.
///
/// Its body in standard operators is at once its specification, its type inference, the function that a runtime
/// without a kernel runs, and the inline lowering.
pub trait Operator {
    /// Its name: one that no standard operator has, for there are runtimes that look names up without the domain.
    const NAME: &'static str;
    /// Its domain.
    const DOMAIN: &'static str;
    /// The domain's version it belongs to.
    const VERSION: i64;
    /// Its operands.
    type Inputs<'g>: ValueList<'g>;
    /// Its results.
    type Outputs<'g>: ValueList<'g>;

    /// Its static arguments, for kernels to read.
    fn attributes(&self) -> Vec<(&'static str, Attribute)>;

    /// What it computes.
    fn body<'g>(&self, p: Scope<'g>, inputs: Self::Inputs<'g>) -> Self::Outputs<'g>;
}

impl<'g> Scope<'g> {
    /// Applies a custom operator, as the graph's lowering says: as a node with a function behind it, or as its body.
    ///
    /// Calls that agree in attributes and in the types of all operands share one function; others get an overload of
    /// their own, so that a body may depend on static sizes and on which operands are there.
    #[track_caller]
    pub fn call<O: Operator>(self, operator: O, inputs: O::Inputs<'g>) -> O::Outputs<'g> {
        if self.graph().lowering() == Lowering::Inline {
            return self.within(O::NAME, |p| operator.body(p, inputs));
        }
        let location = Location::caller();
        let mut named = Vec::new();
        inputs.slots("", &mut named);
        let slots: Vec<Option<Value<'g>>> = named.iter().map(|(_, slot)| *slot).collect();
        let attributes = operator.attributes();
        let operands: Vec<Option<TensorType>> =
            slots.iter().map(|slot| slot.and_then(|value| value.tensor())).collect();
        let poisoned = slots.iter().flatten().any(|value| value.id() == POISON);

        let known = self.graph().arena.borrow().functions.iter().position(|function| {
            function.operator == O::NAME
                && function.domain == O::DOMAIN
                && function.attributes == attributes
                && function.operands == operands
        });
        // The body is written even where a function is known: it makes the outputs' group, whose form only it knows.
        let (body, outputs) = self.function_body(&operator, inputs, &named);
        let results: Vec<Option<Value<'g>>> = outputs.to_slots();
        let types: Option<Vec<TensorType>> = results.iter().flatten().map(|value| value.tensor()).collect();
        let overload = {
            let mut arena = self.graph().arena.borrow_mut();
            match known {
                Some(function) => arena.functions[function].overload.clone(),
                None => {
                    let count =
                        arena.functions.iter().filter(|f| f.operator == O::NAME && f.domain == O::DOMAIN).count();
                    let overload = if count == 0 { String::new() } else { (count + 1).to_string() };
                    arena.functions.push(Function {
                        operator: O::NAME,
                        domain: O::DOMAIN,
                        version: O::VERSION,
                        overload: overload.clone(),
                        attributes: attributes.clone(),
                        operands,
                        body,
                    });
                    overload
                }
            }
        };
        if poisoned || types.is_none() {
            return outputs.map(&mut |_| Value::new(self.graph(), POISON));
        }
        let emit = Emit { op: O::NAME, domain: O::DOMAIN, overload: &overload, attributes, sub_graph: None };
        let count = results.iter().flatten().count();
        let mut made = self
            .graph()
            .emit_slots(emit, &slots, count, |_| types.ok_or_else(|| format!("no result (called at {location})")))
            .into_iter();
        outputs.map(&mut |_| made.next().unwrap_or_else(|| Value::new(self.graph(), POISON)))
    }

    /// Writes an operator's body as a body of its own, over formal inputs of the operands' types.
    #[track_caller]
    fn function_body<O: Operator>(
        self,
        operator: &O,
        inputs: O::Inputs<'g>,
        slots: &[(String, Option<Value<'g>>)],
    ) -> (usize, O::Outputs<'g>) {
        let (body, outer, path) = {
            let mut arena = self.graph().arena.borrow_mut();
            let body = arena.add_body(None);
            let outer = std::mem::replace(&mut arena.current, body);
            (body, outer, std::mem::take(&mut arena.path))
        };
        // A function's inputs are positions: an operand left out keeps its formal, which nothing reads.
        let absent = TensorType::new(DType::F32, [0_usize; 0]);
        let mut present = Vec::new();
        for (name, slot) in slots {
            match slot {
                Some(value) => present.push(self.formal(name, value.tensor())),
                None => {
                    self.formal(name, Some(absent.clone()));
                }
            }
        }
        let mut present = present.into_iter();
        let inputs = inputs.map(&mut |_| present.next().unwrap_or_else(|| Value::new(self.graph(), POISON)));
        let outputs = operator.body(self, inputs);
        let results: Vec<Value<'g>> = outputs.to_slots().into_iter().flatten().collect();
        self.close_body(&results, Location::caller());
        let mut arena = self.graph().arena.borrow_mut();
        arena.current = outer;
        arena.path = path;
        (body, outputs)
    }
}
