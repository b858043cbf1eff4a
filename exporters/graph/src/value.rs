//! The handle to a value, and what can be asked of it.

use crate::{DType, Dim, Graph, TensorType, arena::ValueId, graph::Emit, tensor_type::Shape};
use std::{fmt, panic::Location};

/// The id of a value that could not be made: its reason is kept in the graph, and what depends on it is passed over.
pub(crate) const POISON: ValueId = ValueId::MAX;

/// A tensor of the graph: what an input, a weight, a literal or a node gives.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    graph: &'g Graph,
    id: ValueId,
}

impl<'g> Value<'g> {
    pub(crate) fn new(graph: &'g Graph, id: ValueId) -> Self {
        Self { graph, id }
    }

    pub(crate) fn graph(self) -> &'g Graph {
        self.graph
    }

    pub(crate) fn id(self) -> ValueId {
        self.id
    }

    pub(crate) fn tensor(self) -> Option<TensorType> {
        (self.id != POISON).then(|| self.graph.arena.borrow().values[self.id].tensor.clone())
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        self.tensor().map_or(DType::F32, |tensor| tensor.dtype)
    }

    /// Sizes, outermost first.
    pub fn shape(self) -> Vec<Dim> {
        self.tensor().map_or_else(Vec::new, |tensor| tensor.shape)
    }

    /// Size of one axis, which may be symbolic; -1 is the last axis.
    #[track_caller]
    pub fn dim(self, axis: isize) -> Dim {
        let Some(tensor) = self.tensor() else { return Dim::from(1_usize) };
        match tensor.axis(axis) {
            Ok(axis) => tensor.shape[axis].clone(),
            Err(problem) => {
                self.fail(problem);
                Dim::from(1_usize)
            }
        }
    }

    /// Size of one axis that must be static; -1 is the last axis.
    #[track_caller]
    pub fn size(self, axis: isize) -> usize {
        let dim = self.dim(axis);
        if let Some(size) = dim.known() {
            return size;
        }
        self.fail(format!("expected a static size at axis {axis} of {}, got {dim}", Shape(&self.shape())));
        1
    }

    #[track_caller]
    pub(crate) fn fail(self, problem: String) {
        let mut arena = self.graph.arena.borrow_mut();
        let what = match self.id {
            POISON => "value".to_owned(),
            id => format!("value `{}`", arena.values[id].name),
        };
        arena.fail(what, problem, Location::caller());
    }

    /// Emits an ONNX operator with this value as its first operand and one output.
    #[track_caller]
    pub(crate) fn apply(
        self,
        op: &'static str,
        rest: &[Value<'g>],
        attributes: Vec<(&'static str, crate::Attribute)>,
        infer: impl FnOnce(&[TensorType]) -> Result<TensorType, String>,
    ) -> Value<'g> {
        let inputs: Vec<Value<'g>> = std::iter::once(self).chain(rest.iter().copied()).collect();
        let [output] = self.graph.emit(Emit::onnx(op, attributes), &inputs, |types| infer(types).map(|t| [t]));
        output
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tensor() {
            Some(tensor) => write!(f, "{}: {tensor}", self.graph.arena.borrow().values[self.id].name),
            None => f.write_str("poison"),
        }
    }
}
