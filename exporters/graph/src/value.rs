//! The handle to a value, and what it says of its type.

use crate::{
    Attribute, DType, Dim, TensorType,
    arena::ValueId,
    emit::{Draft, Emit},
    error::Line,
    tensor_type::Shape,
};
use std::{fmt, panic::Location};

pub(crate) use crate::arena::POISON;

/// A tensor of the graph: an input, a weight, a constant, or the result of a node.
///
/// ONNX's operators are its methods, and `+ - * /` work between two values, and between a value and a number. A number
/// takes the element type of the value beside it: `x * 0.5` works in every floating-point type, `n + 1` in every
/// integer type. (It has the precision of an `f32`; for fp64 there is [`Scope::scalar_as`](crate::Scope::scalar_as).)
/// Nothing else is converted implicitly: `+` between fp16 and fp32 is an error, and [`cast`](Value::cast) is the
/// remedy.
///
/// A value that could not be computed because of an error is a placeholder; operations on it do nothing.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    graph: &'g Draft,
    id: ValueId,
}

impl<'g> Value<'g> {
    pub(crate) fn new(graph: &'g Draft, id: ValueId) -> Self {
        Self { graph, id }
    }

    pub(crate) fn graph(self) -> &'g Draft {
        self.graph
    }

    pub(crate) fn id(self) -> ValueId {
        self.id
    }

    /// Its type, if it is not a placeholder.
    pub(crate) fn tensor(self) -> Option<TensorType> {
        (self.id != POISON).then(|| self.graph.arena.borrow().values[self.id].tensor.clone())
    }

    /// Returns the element type: fp32 for a placeholder left by an error.
    pub fn dtype(self) -> DType {
        self.tensor().map_or(DType::F32, |tensor| tensor.dtype)
    }

    /// Returns the sizes of all axes, outermost first: none for a placeholder left by an error.
    pub fn shape(self) -> Vec<Dim> {
        self.tensor().map_or_else(Vec::new, |tensor| tensor.shape)
    }

    /// Returns the size of one axis, which may be symbolic; -1 is the last axis.
    ///
    /// An axis that does not exist is an error of the graph; the size is then 1.
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

    /// Returns the size of one axis that must be static; -1 is the last axis.
    ///
    /// An axis that is symbolic or does not exist is an error of the graph; the size is then 1.
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
        let what = match self.id {
            POISON => "value".to_owned(),
            id => format!("value `{}`", self.graph.arena.borrow().values[id].name),
        };
        self.graph.fail(what, problem, Location::caller());
    }

    /// Emits an ONNX operator with this value as its first operand and one result.
    #[track_caller]
    pub(crate) fn apply(
        self,
        op: &'static str,
        rest: &[Value<'g>],
        attributes: Vec<(&'static str, Attribute)>,
        infer: impl FnOnce(&[TensorType]) -> Result<TensorType, String>,
    ) -> Value<'g> {
        let at = Location::caller();
        let operands: Vec<Option<Value<'g>>> = std::iter::once(self).chain(rest.iter().copied()).map(Some).collect();
        let results =
            self.graph.emit_at(Emit::onnx(op, attributes), &operands, 1, at, |types| infer(types).map(|t| vec![t]));
        results.first().copied().unwrap_or(Value::new(self.graph, POISON))
    }
}

impl Draft {
    /// Emits a node for the line of source that called the caller.
    #[track_caller]
    pub(crate) fn emit_slots(
        &self,
        emit: Emit<'_>,
        operands: &[Option<Value<'_>>],
        outputs: usize,
        infer: impl FnOnce(&[TensorType]) -> Result<Vec<TensorType>, String>,
    ) -> Vec<Value<'_>> {
        self.emit_at(emit, operands, outputs, Location::caller(), infer)
    }

    /// Emits a node for a given line of source; see [`Draft::emit_ids`].
    pub(crate) fn emit_at(
        &self,
        emit: Emit<'_>,
        operands: &[Option<Value<'_>>],
        outputs: usize,
        at: Line,
        infer: impl FnOnce(&[TensorType]) -> Result<Vec<TensorType>, String>,
    ) -> Vec<Value<'_>> {
        if operands.iter().flatten().any(|value| !value.belongs_to(self)) {
            let name = self.arena.borrow_mut().node_name(emit.op);
            self.fail(format!("node `{name}`"), "reads a value of another graph", at);
            return vec![Value::new(self, POISON); outputs];
        }
        let ids: Vec<Option<ValueId>> = operands.iter().map(|slot| slot.map(Value::id)).collect();
        self.emit_ids(emit, &ids, outputs, at, infer).into_iter().map(|id| Value::new(self, id)).collect()
    }
}

impl Value<'_> {
    /// Whether this is a value of that graph.
    pub(crate) fn belongs_to(self, graph: &Draft) -> bool {
        std::ptr::eq(self.graph, graph)
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tensor() {
            Some(tensor) => write!(f, "{}: {tensor}", self.graph.arena.borrow().values[self.id].name),
            None => f.write_str("placeholder"),
        }
    }
}
