//! Recurrences: ONNX's `Scan`, with its body as a closure.

use crate::{
    Attribute, Dim, Scope, TensorType, Value, ValueList, arena::BodyId, emit::Emit, error::Line, value::POISON,
};
use std::panic::Location;

impl<'g> Scope<'g> {
    /// Runs `body` once for each index of an axis: `(states, slices) -> (states, outputs)`.
    ///
    /// `inputs` are cut into slices along `axis`, which the slices lack; the outputs of all iterations are joined along
    /// it again. There must be at least one input, and states keep their number and their types. The body may read any
    /// value of the graphs around it. Returned are the last states and the joined outputs.
    ///
    /// ```
    /// # use densessm_graph::{DType, Dim, Graph, Lowering, TensorType};
    /// # let graph = Graph::new("example", 18, Lowering::Inline)?;
    /// # let x = graph.input("x", TensorType::new(DType::F32, ["batch".into(), "time".into(), Dim::from(8_usize)]));
    /// # let start = graph.input("start", TensorType::new(DType::F32, ["batch".into(), Dim::from(8_usize)]));
    /// let decay = graph.root().weight("decay", [8]);
    /// let (end, y) = graph.root().scan(1, start, x, |h, x| {
    ///     let h = decay * h + x; // [batch, 8]
    ///     (h, h.silu())
    /// });
    /// # graph.output("end", end);
    /// # graph.output("y", y);
    /// # assert_eq!(graph.finish()?.outputs().last().map(|(_, y)| y.to_string()).as_deref(), Some("fp32[batch, time, 8]"));
    /// # Ok::<(), densessm_graph::Error>(())
    /// ```
    #[track_caller]
    pub fn scan<S, I, O>(self, axis: usize, states: S, inputs: I, body: impl FnOnce(S, I) -> (S, O)) -> (S, O)
    where
        S: ValueList<'g> + Clone,
        I: ValueList<'g>,
        O: ValueList<'g>,
    {
        let at = Location::caller();
        let before = values(&states);
        let slices = values(&inputs);
        let extent = self.extent_of(slices.first().copied(), axis, at);

        let (sub_graph, (after, outputs)) = self.sub_graph(|| {
            let states = states.map(&mut |state| self.formal_at("state", state.tensor(), at));
            let inputs = inputs.map(&mut |input| self.slice_formal(input, axis, &extent, at));
            let results = body(states, inputs);
            let produced: Vec<Value<'g>> = values(&results.0).into_iter().chain(values(&results.1)).collect();
            self.close_body(&produced, at);
            results
        });
        let (after_values, output_values) = (values(&after), values(&outputs));
        self.check_states(&before, &after_values, at);

        let emit = Emit {
            sub_graph: Some(sub_graph),
            ..Emit::onnx(
                "Scan",
                vec![
                    ("num_scan_inputs", (slices.len() as i64).into()),
                    ("scan_input_axes", Attribute::Ints(vec![axis as i64; slices.len()])),
                    ("scan_output_axes", Attribute::Ints(vec![axis as i64; output_values.len()])),
                ],
            )
        };
        let operands: Vec<Option<Value<'g>>> = before.iter().chain(&slices).copied().map(Some).collect();
        let count = after_values.len() + output_values.len();
        let results = self.graph().emit_at(emit, &operands, count, at, |_| {
            let tensor = |value: &Value<'g>| value.tensor().ok_or_else(|| "its body has no result".to_owned());
            let states = after_values.iter().map(tensor);
            let outputs = output_values.iter().map(|value| stacked(tensor(value)?, axis, &extent));
            states.chain(outputs).collect()
        });
        let mut results = results.into_iter();
        let mut next = |_: Value<'g>| results.next().unwrap_or(self.poison());
        (after.map(&mut next), outputs.map(&mut next))
    }

    /// The size of the axis that is iterated over.
    fn extent_of(self, input: Option<Value<'g>>, axis: usize, at: Line) -> Dim {
        let one = Dim::from(1_usize);
        let Some(input) = input else {
            self.graph().fail("scan", "expected at least one input to iterate over", at);
            return one;
        };
        let Some(tensor) = input.tensor() else { return one };
        tensor.shape.get(axis).cloned().unwrap_or_else(|| {
            self.graph().fail("scan", format!("no axis {axis} in {tensor}"), at);
            one
        })
    }

    fn check_states(self, before: &[Value<'g>], after: &[Value<'g>], at: Line) {
        if before.len() != after.len() {
            let problem = format!("expected {} states after each iteration, got {}", before.len(), after.len());
            self.graph().fail("scan", problem, at);
        }
        for (before, now) in before.iter().zip(after) {
            if let (Some(before), Some(now)) = (before.tensor(), now.tensor())
                && before != now
            {
                self.graph().fail("scan", format!("expected a state to stay {before}, got {now}"), at);
            }
        }
    }

    /// Writes a sub-graph of the current body; what it contains may read the values around it.
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

    /// Declares the results of the current body. ONNX requires each to be a different result of one of its own nodes.
    pub(crate) fn close_body(self, results: &[Value<'g>], at: Line) {
        let body = self.graph().arena.borrow().current;
        for value in results.iter().filter(|value| value.id() != POISON) {
            if !value.belongs_to(self.graph()) {
                self.graph().fail("body", "returns a value of another graph", at);
                continue;
            }
            let own = {
                let arena = self.graph().arena.borrow();
                let made_here = arena.bodies[body].nodes.iter().any(|node| node.outputs.contains(&value.id()));
                made_here && !arena.bodies[body].outputs.contains(&value.id())
            };
            let id = if own {
                value.id()
            } else {
                let emit = Emit::onnx("Identity", vec![]);
                let ids = self.graph().emit_ids(emit, &[Some(value.id())], 1, at, |types| Ok(types.to_vec()));
                ids.first().copied().unwrap_or(POISON)
            };
            if id != POISON {
                self.graph().arena.borrow_mut().bodies[body].outputs.push(id);
            }
        }
    }

    /// A formal input of the current body.
    #[track_caller]
    pub(crate) fn formal(self, name: &str, tensor: Option<TensorType>) -> Value<'g> {
        self.formal_at(name, tensor, Location::caller())
    }

    fn formal_at(self, name: &str, tensor: Option<TensorType>, at: Line) -> Value<'g> {
        let Some(tensor) = tensor else { return self.poison() };
        let mut arena = self.graph().arena.borrow_mut();
        let name = arena.node_name(name);
        let body = arena.current;
        let id = arena.add_value(name, tensor, body, at);
        arena.bodies[body].inputs.push(id);
        Value::new(self.graph(), id)
    }

    /// A formal input for the slices of a value.
    fn slice_formal(self, input: Value<'g>, axis: usize, extent: &Dim, at: Line) -> Value<'g> {
        let Some(mut tensor) = input.tensor() else { return self.poison() };
        if tensor.shape.get(axis) != Some(extent) {
            self.graph().fail("scan", format!("cannot cut {tensor} into {extent} slices along axis {axis}"), at);
            return self.poison();
        }
        tensor.shape.remove(axis);
        self.formal_at("slice", Some(tensor), at)
    }
}

/// The values of a group that are present.
fn values<'g>(group: &impl ValueList<'g>) -> Vec<Value<'g>> {
    group.to_slots().into_iter().flatten().collect()
}

/// The type of the slices of all iterations, joined along a new axis.
fn stacked(slice: TensorType, axis: usize, extent: &Dim) -> Result<TensorType, String> {
    let mut shape = slice.shape.clone();
    if axis > shape.len() {
        return Err(format!("cannot join slices {slice} along axis {axis}"));
    }
    shape.insert(axis, extent.clone());
    Ok(slice.with_shape(shape))
}
