//! A finished graph: checked as a whole, ready to be written or printed.

use crate::{
    Error, TensorType, Weight,
    arena::{Arena, BodyId, MAIN, ValueId},
};

/// A finished graph, its functions included.
#[derive(Debug)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) opset: i64,
    pub(crate) arena: Arena,
}

impl Model {
    pub(crate) fn close(name: String, opset: i64, mut arena: Arena) -> Result<Self, Error> {
        if let Some(error) = arena.error.take() {
            return Err(error);
        }
        if arena.bodies[MAIN].outputs.is_empty() {
            let at = std::panic::Location::caller();
            return Err(Error::new(format!("graph `{name}`"), "has no output", at));
        }
        let model = Self { name, opset, arena };
        model.check_alive()?;
        Ok(model)
    }

    /// The weights in the order of their declaration.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        self.arena.weights.iter().map(|(_, weight, _)| weight)
    }

    /// Name and type of each input.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.arena.bodies[MAIN].inputs.iter().map(|&id| self.named(id))
    }

    /// Name and type of each output.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.arena.bodies[MAIN].outputs.iter().map(|&id| self.named(id))
    }

    fn named(&self, id: ValueId) -> (&str, &TensorType) {
        let value = &self.arena.values[id];
        (&value.name, &value.tensor)
    }

    /// In a graph that is declared, what nothing depends on was forgotten somewhere: a state that is not handed on,
    /// a weight that is not applied.
    fn check_alive(&self) -> Result<(), Error> {
        let arena = &self.arena;
        let mut alive = vec![false; arena.values.len()];
        let mark =
            |alive: &mut Vec<bool>, body: BodyId| arena.bodies[body].outputs.iter().for_each(|&id| alive[id] = true);
        let roots = std::iter::once(MAIN).chain(arena.functions.iter().map(|function| function.body));
        for root in roots {
            mark(&mut alive, root);
            self.spread(root, &mut alive)?;
        }
        for (id, weight, location) in &arena.weights {
            if !alive[*id] {
                return Err(Error::new(format!("weight `{}`", weight.name), "is declared and never used", location));
            }
        }
        for &id in &arena.bodies[MAIN].inputs {
            if !alive[id] {
                let what = format!("input `{}`", arena.values[id].name);
                return Err(Error::new(what, "is declared and never used", std::panic::Location::caller()));
            }
        }
        Ok(())
    }

    /// Marks what the living nodes of a body read, last node first: nodes stand behind what they read.
    fn spread(&self, body: BodyId, alive: &mut Vec<bool>) -> Result<(), Error> {
        let arena = &self.arena;
        for node in arena.bodies[body].nodes.iter().rev() {
            if !node.outputs.iter().any(|&id| alive[id]) {
                let problem = "no output depends on it";
                return Err(Error::new(format!("node `{}`", node.name), problem, node.location));
            }
            node.inputs.iter().flatten().for_each(|&id| alive[id] = true);
            if let Some(sub_graph) = node.sub_graph {
                arena.bodies[sub_graph].outputs.iter().for_each(|&id| alive[id] = true);
                self.spread(sub_graph, alive)?;
            }
        }
        Ok(())
    }
}
