//! Emitting nodes: operands checked, types inferred, equal operations shared. Works on ids, below the public handles.

use crate::{
    Attribute, Lowering, TensorType,
    arena::{Arena, Node, POISON, ValueId},
    error::Line,
};
use std::cell::RefCell;

/// The part of a graph that all handles share.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) arena: RefCell<Arena>,
    lowering: Lowering,
    opset: i64,
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

    /// Whether an equal operation on equal operands can be used instead. An `Identity` exists only to give a value
    /// another name, so it is never shared.
    fn shareable(&self) -> bool {
        self.sub_graph.is_none() && self.op != "Identity"
    }

    fn key(&self, operands: &[Option<ValueId>]) -> String {
        format!("{} {} {} {operands:?} {:?}", self.domain, self.op, self.overload, self.attributes)
    }
}

impl Draft {
    pub(crate) fn new(opset: i64, lowering: Lowering) -> Self {
        Self { arena: RefCell::new(Arena::new()), lowering, opset }
    }

    pub(crate) fn opset(&self) -> i64 {
        self.opset
    }

    pub(crate) fn lowering(&self) -> Lowering {
        self.lowering
    }

    pub(crate) fn fail(&self, what: impl Into<String>, problem: impl Into<String>, at: Line) {
        self.arena.borrow_mut().fail(what, problem, at);
    }

    /// Emits a node in the current body, with `outputs` results whose types are as `infer` says. If anything is wrong
    /// with it, all results are poison.
    pub(crate) fn emit_ids(
        &self,
        emit: Emit<'_>,
        operands: &[Option<ValueId>],
        outputs: usize,
        at: Line,
        infer: impl FnOnce(&[TensorType]) -> Result<Vec<TensorType>, String>,
    ) -> Vec<ValueId> {
        let name = self.arena.borrow_mut().node_name(emit.op);
        if operands.contains(&Some(POISON)) {
            return vec![POISON; outputs];
        }
        let results = self.operand_types(operands).and_then(|types| infer(&types)).and_then(|results| {
            if results.len() != outputs {
                return Err(format!("expected {outputs} results, got {}", results.len()));
            }
            results.iter().try_for_each(TensorType::check)?;
            Ok(results)
        });
        let mut arena = self.arena.borrow_mut();
        let results = match results {
            Ok(results) => results,
            Err(problem) => {
                arena.fail(format!("node `{name}`"), problem, at);
                return vec![POISON; outputs];
            }
        };
        let body = arena.current;
        let key = emit.shareable().then(|| emit.key(operands));
        if let Some(known) = key.as_ref().and_then(|key| arena.bodies[body].emitted.get(key)) {
            return known.clone();
        }
        let several = outputs > 1;
        let ids: Vec<ValueId> = results
            .into_iter()
            .enumerate()
            .map(|(i, tensor)| {
                let value = if several { format!("{name}.{i}") } else { name.clone() };
                arena.add_value(value, tensor, body, at)
            })
            .collect();
        arena.bodies[body].nodes.push(Node {
            name,
            op: emit.op,
            domain: emit.domain,
            overload: emit.overload.to_owned(),
            inputs: operands.to_vec(),
            outputs: ids.clone(),
            attributes: emit.attributes,
            sub_graph: emit.sub_graph,
            location: at,
        });
        if let Some(key) = key {
            arena.bodies[body].emitted.insert(key, ids.clone());
        }
        ids
    }

    /// The types of the operands that are present, which the current body must be able to read.
    fn operand_types(&self, operands: &[Option<ValueId>]) -> Result<Vec<TensorType>, String> {
        let arena = self.arena.borrow();
        let present = operands.iter().flatten().map(|&id| &arena.values[id]);
        present
            .map(|info| {
                if arena.sees(arena.current, info.body) {
                    Ok(info.tensor.clone())
                } else {
                    Err(format!("reads `{}`, which belongs to another body", info.name))
                }
            })
            .collect()
    }
}
