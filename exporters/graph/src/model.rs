//! A finished graph: checked as a whole, ready to be written or printed.

use crate::{
    Error, TensorType, Weight,
    arena::{Arena, BodyId, MAIN, ValueId},
    error::Line,
};
use std::collections::HashSet;

/// A finished graph, including the functions of its custom operators.
///
/// Its `Display` form is a text with one line per weight, input, node and output, for reading and for diffs.
#[derive(Debug)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) opset: i64,
    pub(crate) arena: Arena,
    /// The line that called [`Graph::finish`](crate::Graph::finish).
    pub(crate) finished: Line,
}

impl Model {
    pub(crate) fn close(name: String, opset: i64, mut arena: Arena, finished: Line) -> Result<Self, Error> {
        if let Some(error) = arena.error.take() {
            return Err(error);
        }
        if arena.bodies[MAIN].outputs.is_empty() {
            return Err(Error::new(format!("graph `{name}`"), "has no output", finished));
        }
        let model = Self { name, opset, arena, finished };
        model.check_alive()?;
        for root in model.roots() {
            model.check_names(root, &mut HashSet::new())?;
        }
        Ok(model)
    }

    /// Iterates over the weights in the order of their declaration.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.arena.weights.iter().map(|(_, weight)| weight)
    }

    /// Iterates over the name and type of each input, in the order of declaration.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.arena.bodies[MAIN].inputs.iter().map(|&id| self.named(id))
    }

    /// Iterates over the name and type of each output, in the order of declaration.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.arena.bodies[MAIN].outputs.iter().map(|&id| self.named(id))
    }

    fn named(&self, id: ValueId) -> (&str, &TensorType) {
        let value = &self.arena.values[id];
        (&value.name, &value.tensor)
    }

    /// The main graph and the functions.
    fn roots(&self) -> impl Iterator<Item = BodyId> {
        std::iter::once(MAIN).chain(self.arena.functions.iter().map(|function| function.body))
    }

    /// Checks that every node, weight and input is used. Something unused was forgotten: a state that is not returned,
    /// a weight that is not applied.
    fn check_alive(&self) -> Result<(), Error> {
        let arena = &self.arena;
        let mut alive = vec![false; arena.values.len()];
        for root in self.roots() {
            arena.bodies[root].outputs.iter().for_each(|&id| alive[id] = true);
            self.mark_operands(root, &mut alive)?;
        }
        let unused = "is declared and never used";
        for (ids, weight) in &arena.weights {
            if let Some(&id) = ids.iter().find(|&&id| !alive[id]) {
                return Err(Error::new(format!("weight `{}`", arena.values[id].name), unused, weight.declared()));
            }
        }
        for &id in &arena.bodies[MAIN].inputs {
            if !alive[id] {
                let input = &arena.values[id];
                return Err(Error::new(format!("input `{}`", input.name), unused, input.location));
            }
        }
        Ok(())
    }

    /// Marks the operands of a body's live nodes, from the last node to the first: nodes come after their operands.
    fn mark_operands(&self, body: BodyId, alive: &mut Vec<bool>) -> Result<(), Error> {
        let arena = &self.arena;
        for node in arena.bodies[body].nodes.iter().rev() {
            if !node.outputs.iter().any(|&id| alive[id]) {
                return Err(Error::new(format!("node `{}`", node.name), "no output depends on it", node.location));
            }
            node.inputs.iter().flatten().for_each(|&id| alive[id] = true);
            if let Some(sub_graph) = node.sub_graph {
                arena.bodies[sub_graph].outputs.iter().for_each(|&id| alive[id] = true);
                self.mark_operands(sub_graph, alive)?;
            }
        }
        Ok(())
    }

    /// Checks that no two values of a graph or function share a name, with those of the bodies nested in it.
    fn check_names<'a>(&'a self, body: BodyId, names: &mut HashSet<&'a str>) -> Result<(), Error> {
        let arena = &self.arena;
        let content = &arena.bodies[body];
        let literals = content.literals.iter().map(|(id, _)| id);
        let weights = arena.weights.iter().filter(|_| body == MAIN).flat_map(|(ids, _)| ids);
        let results = content.nodes.iter().flat_map(|node| &node.outputs);
        for &id in content.inputs.iter().chain(weights).chain(literals).chain(results) {
            let value = &arena.values[id];
            if !names.insert(&value.name) {
                let problem = "is the name of two values; rename the input, output or weight of that name";
                return Err(Error::new(format!("value `{}`", value.name), problem, value.location));
            }
        }
        let nested = content.nodes.iter().filter_map(|node| node.sub_graph);
        nested.into_iter().try_for_each(|sub_graph| self.check_names(sub_graph, names))
    }
}
