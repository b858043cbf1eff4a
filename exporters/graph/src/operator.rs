//! Custom operators: a name, typed attributes, and a body in standard operators that is its specification.

mod check;

use crate::{Attribute, DType, Scope, TensorType, Value, ValueList, arena::Function, emit::Emit, value::POISON};
use densessm_proto::{Lowering, operators::Schema};
use std::panic::Location;

/// A custom operator.
///
/// The body in standard operators serves as the operator's specification, its type inference, the function that a
/// runtime without a kernel runs, and the inline lowering.
///
/// A body may call other operators, but neither itself nor an operator whose body calls it: ONNX has no recursion. As the
/// body is written again for each call, such a cycle does not end.
pub trait Operator {
    /// The operator's name, which no standard operator may have: some runtimes look names up without the domain.
    const NAME: &'static str;
    /// The domain that the operator belongs to.
    const DOMAIN: &'static str;
    /// The version of the domain.
    const VERSION: i64;
    /// The operands.
    type Inputs<'g>: ValueList<'g>;
    /// The results.
    type Outputs<'g>: ValueList<'g>;

    /// The schema that every call is checked against, if the operator has one: names, order, presence, element types
    /// and shapes of the operands, the attributes, and the results of the body.
    fn schema(&self) -> Option<&'static Schema> {
        None
    }

    /// The attributes of a call, which kernels read.
    fn attributes(&self) -> Vec<(&'static str, Attribute)>;

    /// Computes the results in standard operators.
    fn body<'g>(&self, p: Scope<'g>, inputs: Self::Inputs<'g>) -> Self::Outputs<'g>;
}

impl<'g> Scope<'g> {
    /// Applies a custom operator as the graph's lowering says: as a node with a local function, or as the body itself.
    ///
    /// Calls with the same attributes and operands of the same types share one function; others get an overload of
    /// their own, so that a body may depend on static sizes and on which operands are present.
    ///
    /// A call that deviates from the operator's [schema](Operator::schema) is an error that names the operand.
    #[track_caller]
    pub fn call<O: Operator>(self, operator: O, inputs: O::Inputs<'g>) -> O::Outputs<'g> {
        let location = Location::caller();
        let mut named = Vec::new();
        inputs.slots("", &mut named);
        let expected = self.check_call(&operator, &named, location);
        if self.graph().lowering() == Lowering::Inline {
            let outputs = self.within(O::NAME, |p| operator.body(p, inputs));
            self.check_results(&operator, expected, &outputs, location);
            return outputs;
        }
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
        // The body is written even where the function is known already: only the body knows the form of the outputs.
        let (body, outputs) = self.function_body(&operator, inputs, &named);
        self.check_results(&operator, expected, &outputs, location);
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

    /// Checks a call against the operator's schema. Returns the types that the results must have; none if there is no
    /// schema, an operand is poisoned, or the call is invalid, which is reported.
    fn check_call<O: Operator>(
        self,
        operator: &O,
        named: &[(String, Option<Value<'g>>)],
        location: &'static Location<'static>,
    ) -> Option<Vec<TensorType>> {
        let schema = operator.schema()?;
        let identity = (schema.domain, schema.version, schema.name);
        if identity != (O::DOMAIN, O::VERSION, O::NAME) {
            self.fail_call::<O>(format!("expected the schema of this operator, got {identity:?}"), location);
            return None;
        }
        let mut slots = Vec::with_capacity(named.len());
        for (name, value) in named {
            let tensor = match value {
                Some(value) => Some(value.tensor()?),
                None => None,
            };
            slots.push((name.clone(), tensor));
        }
        match check::call(schema, &operator.attributes(), &slots) {
            Ok(results) => Some(results),
            Err(problem) => {
                self.fail_call::<O>(problem, location);
                None
            }
        }
    }

    /// Checks the results of a body against the types that the schema says.
    fn check_results<O: Operator>(
        self,
        operator: &O,
        expected: Option<Vec<TensorType>>,
        outputs: &O::Outputs<'g>,
        location: &'static Location<'static>,
    ) {
        let got: Option<Vec<TensorType>> = outputs.to_slots().into_iter().flatten().map(Value::tensor).collect();
        if let (Some(schema), Some(expected), Some(got)) = (operator.schema(), expected, got)
            && let Err(problem) = check::results(schema, &expected, &got)
        {
            self.fail_call::<O>(problem, location);
        }
    }

    fn fail_call<O: Operator>(self, problem: String, location: &'static Location<'static>) {
        self.graph().arena.borrow_mut().fail(format!("call of `{}`", O::NAME), problem, location);
    }

    /// Writes an operator's body as a function, over formal inputs of the operands' types.
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
        // A function's inputs are positional: an operand that is left out keeps a formal input, which nothing reads.
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
