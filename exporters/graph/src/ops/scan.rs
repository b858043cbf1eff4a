//! Recurrences: ONNX's `Scan`, with its body as a closure.

use crate::{Attribute, Dim, Scope, TensorType, Value, ValueList, arena::BodyId, graph::Emit, value::POISON};
use std::panic::Location;

impl<'g> Scope<'g> {
    /// Runs `body` along an axis: `(states, slices) -> (states, outputs)` for each index in turn.
    ///
    /// `inputs` are cut into slices along `axis`, which the slices lack; the outputs of all turns are joined along it
    /// again. States keep their types. The body may read any value of the graphs around it.
    #[track_caller]
    pub fn scan<S, I, O>(self, axis: usize, states: S, inputs: I, body: impl FnOnce(S, I) -> (S, O)) -> (S, O)
    where
        S: ValueList<'g> + Clone,
        I: ValueList<'g>,
        O: ValueList<'g>,
    {
        let location = Location::caller();
        let mut operands: Vec<Value<'g>> = states.to_slots().into_iter().flatten().collect();
        let state_types: Vec<Option<TensorType>> = operands.iter().map(|state| state.tensor()).collect();
        let slots: Vec<Value<'g>> = inputs.to_slots().into_iter().flatten().collect();
        let extent = slots.first().map_or_else(|| Dim::from(1_usize), |input| input.dim(axis as isize));
        operands.extend(&slots);

        let (sub_graph, (after, outputs)) = self.sub_graph(|| {
            let states = states.map(&mut |state| self.formal("state", state.tensor()));
            let inputs = inputs.map(&mut |input| self.slice_formal(input, axis, &extent));
            body(states, inputs)
        });
        let after_values: Vec<Value<'g>> = after.to_slots().into_iter().flatten().collect();
        let output_values: Vec<Value<'g>> = outputs.to_slots().into_iter().flatten().collect();
        for (before, value) in state_types.iter().zip(&after_values) {
            if let (Some(before), Some(now)) = (before, value.tensor())
                && *before != now
            {
                self.fail_at("scan", format!("expected a state to stay {before}, got {now}"), location);
            }
        }
        let stacked = |tensor: TensorType| {
            let mut shape = tensor.shape.clone();
            if axis > shape.len() {
                return Err(format!("cannot join slices {tensor} along axis {axis}"));
            }
            shape.insert(axis, extent.clone());
            Ok(tensor.with_shape(shape))
        };
        let types: Option<Vec<TensorType>> =
            after_values.iter().chain(&output_values).map(|value| value.tensor()).collect();
        self.close_sub_graph(sub_graph, &after_values, &output_values);

        let emit = Emit {
            sub_graph: Some(sub_graph),
            ..Emit::onnx(
                "Scan",
                vec![
                    ("num_scan_inputs", (slots.len() as i64).into()),
                    ("scan_input_axes", Attribute::Ints(vec![axis as i64; slots.len()])),
                    ("scan_output_axes", Attribute::Ints(vec![axis as i64; output_values.len()])),
                ],
            )
        };
        let operands: Vec<Option<Value<'g>>> = operands.into_iter().map(Some).collect();
        let results = self.graph().emit_slots(emit, &operands, after_values.len() + output_values.len(), |_| {
            let mut types = types.ok_or("its body has no result")?;
            let outputs = types.split_off(after_values.len());
            let outputs = outputs.into_iter().map(stacked).collect::<Result<Vec<_>, String>>()?;
            Ok(types.into_iter().chain(outputs).collect())
        });
        let mut results = results.into_iter();
        let mut next = |_: Value<'g>| results.next().unwrap_or_else(|| Value::new(self.graph(), POISON));
        (after.map(&mut next), outputs.map(&mut next))
    }

    /// Writes a sub-graph of the body at hand; what it contains may read the values around it.
    fn sub_graph<R>(self, write: impl FnOnce() -> R) -> (BodyId, R) {
        let (body, outer) = {
            let mut arena = self.graph().arena.borrow_mut();
            let outer = arena.current;
            let body = arena.add_body(Some(outer));
            arena.current = body;
            (body, outer)
        };
        let result = self.within("Scan", |_| write());
        self.graph().arena.borrow_mut().current = outer;
        (body, result)
    }

    /// Names the sub-graph's results. Each is a node's own output, as ONNX wants it.
    fn close_sub_graph(self, body: BodyId, states: &[Value<'g>], outputs: &[Value<'g>]) {
        let outer = std::mem::replace(&mut self.graph().arena.borrow_mut().current, body);
        for value in states.iter().chain(outputs).filter(|value| value.id() != POISON) {
            let own = {
                let arena = self.graph().arena.borrow();
                let made_here = arena.bodies[body].nodes.iter().any(|node| node.outputs.contains(&value.id()));
                made_here && !arena.bodies[body].outputs.contains(&value.id())
            };
            let id = if own { value.id() } else { self.within("Scan", |_| value.identity().id()) };
            if id != POISON {
                self.graph().arena.borrow_mut().bodies[body].outputs.push(id);
            }
        }
        self.graph().arena.borrow_mut().current = outer;
    }

    /// A formal input of the body at hand.
    pub(crate) fn formal(self, name: &str, tensor: Option<TensorType>) -> Value<'g> {
        let Some(tensor) = tensor else { return Value::new(self.graph(), POISON) };
        let mut arena = self.graph().arena.borrow_mut();
        let name = arena.node_name(name);
        let body = arena.current;
        let id = arena.add_value(name, tensor, body);
        arena.bodies[body].inputs.push(id);
        Value::new(self.graph(), id)
    }

    #[track_caller]
    fn slice_formal(self, input: Value<'g>, axis: usize, extent: &Dim) -> Value<'g> {
        let Some(tensor) = input.tensor() else { return input };
        if tensor.shape.get(axis) != Some(extent) {
            input.fail(format!("cannot be cut along axis {axis} into {extent} slices: it is {tensor}"));
            return Value::new(self.graph(), POISON);
        }
        let mut shape = tensor.shape.clone();
        shape.remove(axis);
        self.formal("slice", Some(tensor.with_shape(shape)))
    }

    pub(crate) fn fail_at(self, what: &str, problem: String, at: &Location<'_>) {
        self.graph().arena.borrow_mut().fail(what, problem, at);
    }
}
