//! A graph while it is written.

use crate::{
    Error, Lowering, Model, Scope, TensorType, Value,
    arena::{MAIN, POISON},
    emit::{Draft, Emit},
};
use std::panic::Location;

/// An ONNX graph while it is written.
///
/// [`Value`]s and [`Scope`]s are small `Copy` handles into it. Every operation checks element types and shapes at once.
/// The first error is kept, operations that depend on it are skipped, and [`Graph::finish`] reports it together with
/// the line of source that caused it. So no operation returns a `Result`.
///
/// An operation that was emitted before, with the same operands in the same body, returns the same value again: a
/// result that two layers need is computed once without being passed around.
#[derive(Debug)]
pub struct Graph {
    draft: Draft,
    name: String,
}

impl Graph {
    /// Starts an empty graph for a version of ONNX's operator set, with custom operators written as `lowering` says.
    ///
    /// # Errors
    /// When the version is not one of 18 to 22, for which the builder writes its nodes.
    #[track_caller]
    pub fn new(name: &str, opset: i64, lowering: Lowering) -> Result<Self, Error> {
        if !(18..=22).contains(&opset) {
            let problem = format!("expected version 18 to 22 of the operator set, got {opset}");
            return Err(Error::new(format!("graph `{name}`"), problem, Location::caller()));
        }
        Ok(Self { draft: Draft::new(opset, lowering), name: name.to_owned() })
    }

    /// Returns the outermost scope.
    pub fn root(&self) -> Scope<'_> {
        Scope::new(&self.draft)
    }

    /// Returns how custom operators are written.
    pub fn lowering(&self) -> Lowering {
        self.draft.lowering()
    }

    /// Declares an input of the graph. It must be used, and its name must not be declared before.
    #[track_caller]
    pub fn input(&self, name: &str, tensor: TensorType) -> Value<'_> {
        let at = Location::caller();
        let what = format!("input `{name}`");
        let mut arena = self.draft.arena.borrow_mut();
        let problem = if name.is_empty() {
            Err("expected a name".to_owned())
        } else if arena.root(arena.current) != MAIN {
            Err("declared in an operator's body; pass it in as an operand".to_owned())
        } else if !arena.declare(&what) {
            Err("declared twice".to_owned())
        } else {
            tensor.check()
        };
        if let Err(problem) = problem {
            arena.fail(what, problem, at);
            return Value::new(&self.draft, POISON);
        }
        let id = arena.add_value(name.to_owned(), tensor, MAIN, at);
        arena.bodies[MAIN].inputs.push(id);
        Value::new(&self.draft, id)
    }

    /// Declares an output of the graph. Its name must not be declared before.
    #[track_caller]
    pub fn output(&self, name: &str, value: Value<'_>) {
        let at = Location::caller();
        let what = format!("output `{name}`");
        let problem = {
            let mut arena = self.draft.arena.borrow_mut();
            if name.is_empty() {
                Some("expected a name")
            } else if arena.current != MAIN {
                Some("declared in the body of an operator or a scan; return the value from the body")
            } else if !arena.declare(&what) {
                Some("declared twice")
            } else if !value.belongs_to(&self.draft) {
                Some("is a value of another graph")
            } else {
                None
            }
        };
        if let Some(problem) = problem {
            return self.draft.fail(what, problem, at);
        }
        let mut id = value.id();
        if id == POISON {
            return;
        }
        // An input, a weight, a constant or another output keeps its own name, so this output needs a node of its own.
        let renamable = {
            let arena = self.draft.arena.borrow();
            let main = &arena.bodies[MAIN];
            main.nodes.iter().any(|node| node.outputs.contains(&id)) && !main.outputs.contains(&id)
        };
        if !renamable {
            let emit = Emit::onnx("Identity", vec![]);
            let ids = self.draft.emit_ids(emit, &[Some(id)], 1, at, |types| Ok(types.to_vec()));
            id = ids.first().copied().unwrap_or(POISON);
        }
        let mut arena = self.draft.arena.borrow_mut();
        if id != POISON {
            let named = &mut arena.values[id];
            (named.name, named.location) = (name.to_owned(), at);
            arena.bodies[MAIN].outputs.push(id);
        }
    }

    /// Checks the graph as a whole and closes it.
    ///
    /// # Errors
    /// The first error made while the graph was written. If there is none: a graph without outputs, a node, weight or
    /// input that no output depends on, or a name that two values share. Each names the line that emitted or declared
    /// the thing in question.
    #[track_caller]
    pub fn finish(self) -> Result<Model, Error> {
        Model::close(self.name, self.draft.opset(), self.draft.arena.into_inner(), Location::caller())
    }
}
