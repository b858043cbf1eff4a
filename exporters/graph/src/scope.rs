//! Scopes: the modules of a model, which give nodes their names.

use crate::{DType, Value, arena::POISON, emit::Draft};
use std::panic::Location;

/// A module of the model: nodes emitted in it carry its path, and weights declared in it are tensors of the checkpoint.
///
/// `p.scope("layers.3", |p| p.scope("mixer", |p| p.weight("D", [d])))` declares the checkpoint's tensor
/// `layers.3.mixer.D`; a node emitted there is named `layers/3/mixer/…`.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'g> {
    graph: &'g Draft,
    weight_dtype: DType,
}

impl<'g> Scope<'g> {
    pub(crate) fn new(graph: &'g Draft) -> Self {
        Self { graph, weight_dtype: DType::F32 }
    }

    pub(crate) fn graph(self) -> &'g Draft {
        self.graph
    }

    pub(crate) fn poison(self) -> Value<'g> {
        Value::new(self.graph, POISON)
    }

    /// Opens a module inside this one while `body` runs. The same module cannot be opened twice.
    #[track_caller]
    pub fn scope<R>(self, name: &str, body: impl FnOnce(Scope<'g>) -> R) -> R {
        {
            let mut arena = self.graph.arena.borrow_mut();
            let path = arena.checkpoint_name(name);
            if name.is_empty() {
                arena.fail(format!("scope `{path}`"), "expected a name", Location::caller());
            } else if !arena.declare(&format!("scope {path}")) {
                arena.fail(format!("scope `{path}`"), "opened twice", Location::caller());
            }
        }
        self.within(name, body)
    }

    /// Opens a scope that is not a module of the checkpoint: its name may recur.
    pub(crate) fn within<R>(self, name: &str, body: impl FnOnce(Scope<'g>) -> R) -> R {
        self.graph.arena.borrow_mut().path.push(name.to_owned());
        let result = body(self);
        self.graph.arena.borrow_mut().path.pop();
        result
    }

    /// Returns the same scope with another element type for the weights declared in it and in the scopes inside it,
    /// where no other [`Storage`](crate::Storage) is chosen. The outermost scope has fp32.
    ///
    /// A type that is not a floating-point one is an error where a weight is declared.
    #[must_use]
    pub fn with_weights_in(self, dtype: DType) -> Self {
        Self { weight_dtype: dtype, ..self }
    }

    /// Returns the element type of weights declared in this scope.
    pub fn weight_dtype(self) -> DType {
        self.weight_dtype
    }
}
