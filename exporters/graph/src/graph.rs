//! A graph while it is written.

use crate::{
    Attribute, Error, Model, Scope, TensorType, Value,
    arena::{Arena, MAIN, Node, ValueId},
    value::POISON,
};
use densessm_proto::Lowering;
use std::{cell::RefCell, panic::Location};

/// An ONNX graph while it is written.
///
/// ValueList and scopes are small `Copy` handles into it. Every operation checks element types and shapes at once; the
/// first mistake is kept, whatever depends on it is passed over, and [`Graph::finish`] reports it with the line of
/// source that made it. So nothing but `finish` returns a `Result`.
///
/// An operation that was emitted before, on the same operands in the same body, gives the same value again: what two
/// layers need alike is computed once without being passed around.
#[derive(Debug)]
pub struct Graph {
    pub(crate) arena: RefCell<Arena>,
    name: String,
    opset: i64,
    lowering: Lowering,
}

/// One node to emit, without its operands.
pub(crate) struct Emit<'a> {
    pub(crate) op: &'static str,
    pub(crate) domain: &'static str,
    pub(crate) overload: &'a str,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    pub(crate) sub_graph: Option<usize>,
}

impl Emit<'_> {
    pub(crate) fn onnx(op: &'static str, attributes: Vec<(&'static str, Attribute)>) -> Self {
        Self { op, domain: "", overload: "", attributes, sub_graph: None }
    }

    /// Whether an equal operation on equal operands may stand for this one. An identity is there for its name.
    fn shareable(&self) -> bool {
        self.sub_graph.is_none() && self.op != "Identity"
    }

    fn key(&self, operands: &[Option<ValueId>]) -> String {
        format!("{} {} {} {operands:?} {:?}", self.domain, self.op, self.overload, self.attributes)
    }
}

impl Graph {
    /// An empty graph for a version of ONNX's operator set, which writes custom operators as `lowering` says.
    ///
    /// # Errors
    /// When the builder does not know the operator set: its forms are those of versions 18 to 22.
    pub fn new(name: &str, opset: i64, lowering: Lowering) -> Result<Self, Error> {
        if !(18..=22).contains(&opset) {
            let problem = format!("expected version 18 to 22 of the operator set, got {opset}");
            return Err(Error::new(format!("graph `{name}`"), problem, Location::caller()));
        }
        Ok(Self { arena: RefCell::new(Arena::new()), name: name.to_owned(), opset, lowering })
    }

    /// The outermost scope.
    pub fn root(&self) -> Scope<'_> {
        Scope::new(self)
    }

    /// How custom operators are written.
    pub fn lowering(&self) -> Lowering {
        self.lowering
    }

    /// Declares an input of the graph.
    #[track_caller]
    pub fn input(&self, name: &str, tensor: TensorType) -> Value<'_> {
        let mut arena = self.arena.borrow_mut();
        if !arena.declare(&format!("input {name}")) {
            arena.fail(format!("input `{name}`"), "declared twice", Location::caller());
        }
        let id = arena.add_value(name.to_owned(), tensor, MAIN);
        arena.bodies[MAIN].inputs.push(id);
        Value::new(self, id)
    }

    /// Declares an output of the graph.
    #[track_caller]
    pub fn output(&self, name: &str, value: Value<'_>) {
        // An input, a weight or another output keeps its own name, so it leaves by a node of its own.
        let named = {
            let arena = self.arena.borrow();
            let made_here = arena.bodies[MAIN].nodes.iter().any(|node| node.outputs.contains(&value.id()));
            !made_here || arena.bodies[MAIN].outputs.contains(&value.id())
        };
        let id = if named && value.id() != POISON { value.identity().id() } else { value.id() };
        let mut arena = self.arena.borrow_mut();
        if !arena.declare(&format!("output {name}")) {
            arena.fail(format!("output `{name}`"), "declared twice", Location::caller());
        }
        if id != POISON {
            arena.values[id].name = name.to_owned();
            arena.bodies[MAIN].outputs.push(id);
        }
    }

    /// Checks the graph as a whole and closes it.
    ///
    /// # Errors
    /// The first mistake made while it was written; else a node, weight or input that no output depends on.
    pub fn finish(self) -> Result<Model, Error> {
        Model::close(self.name, self.opset, self.arena.into_inner())
    }

    /// Emits a node whose outputs are as `infer` says; poison if anything is wrong with it.
    #[track_caller]
    pub(crate) fn emit<const N: usize>(
        &self,
        emit: Emit<'_>,
        inputs: &[Value<'_>],
        infer: impl FnOnce(&[TensorType]) -> Result<[TensorType; N], String>,
    ) -> [Value<'_>; N] {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let outputs = self.emit_slots(emit, &inputs, N, |types| infer(types).map(Vec::from));
        std::array::from_fn(|i| outputs[i])
    }

    /// [`Graph::emit`] for operands that may be left out and a number of outputs known only at run time.
    #[track_caller]
    pub(crate) fn emit_slots(
        &self,
        emit: Emit<'_>,
        inputs: &[Option<Value<'_>>],
        outputs: usize,
        infer: impl FnOnce(&[TensorType]) -> Result<Vec<TensorType>, String>,
    ) -> Vec<Value<'_>> {
        let location = Location::caller();
        let poison = || vec![Value::new(self, POISON); outputs];
        let mut arena = self.arena.borrow_mut();
        let name = arena.node_name(emit.op);
        let what = || format!("node `{name}`");
        let mut types = Vec::with_capacity(inputs.len());
        for value in inputs.iter().flatten() {
            if value.id() == POISON {
                return poison();
            }
            if !std::ptr::eq(value.graph(), self) {
                arena.fail(what(), "reads a value of another graph", location);
                return poison();
            }
            let info = &arena.values[value.id()];
            if !arena.sees(arena.current, info.body) {
                let problem = format!("reads `{}`, which belongs to another body", info.name);
                arena.fail(what(), problem, location);
                return poison();
            }
            types.push(info.tensor.clone());
        }
        let tensors = match infer(&types) {
            Ok(tensors) => tensors,
            Err(problem) => {
                arena.fail(what(), problem, location);
                return poison();
            }
        };
        debug_assert_eq!(tensors.len(), outputs);
        let body = arena.current;
        let operands: Vec<Option<ValueId>> = inputs.iter().map(|slot| slot.map(|value| value.id())).collect();
        let key = emit.shareable().then(|| emit.key(&operands));
        if let Some(known) = key.as_ref().and_then(|key| arena.bodies[body].emitted.get(key)) {
            return known.iter().map(|&id| Value::new(self, id)).collect();
        }
        let several = tensors.len() > 1;
        let ids: Vec<ValueId> = tensors
            .into_iter()
            .enumerate()
            .map(|(i, tensor)| {
                let value = if several { format!("{name}.{i}") } else { name.clone() };
                arena.add_value(value, tensor, body)
            })
            .collect();
        arena.bodies[body].nodes.push(Node {
            name,
            op: emit.op,
            domain: emit.domain,
            overload: emit.overload.to_owned(),
            inputs: operands,
            outputs: ids.clone(),
            attributes: emit.attributes,
            sub_graph: emit.sub_graph,
            location,
        });
        if let Some(key) = key {
            arena.bodies[body].emitted.insert(key, ids.clone());
        }
        ids.into_iter().map(|id| Value::new(self, id)).collect()
    }
}
