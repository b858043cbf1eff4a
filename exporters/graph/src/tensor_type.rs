//! Element types and shapes, and two rules that most operators share: broadcasting and the counting of axes.

use crate::{DType, Dim};
use std::fmt;

/// The type of a value: its element type and its shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// Makes a type from an element type and the sizes of all axes, outermost first.
    pub fn new<D: Into<Dim>>(dtype: DType, shape: impl IntoIterator<Item = D>) -> Self {
        Self { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// Whether every size is one that an axis can have.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.shape.iter().try_for_each(|dim| match dim.problem() {
            Some(problem) => Err(format!("{problem} in {self}")),
            None => Ok(()),
        })
    }

    /// Index of an axis that may count from the end: -1 is the last.
    pub(crate) fn axis(&self, axis: isize) -> Result<usize, String> {
        let rank = self.shape.len();
        let index = if axis < 0 { axis.saturating_add_unsigned(rank) } else { axis };
        match usize::try_from(index) {
            Ok(index) if index < rank => Ok(index),
            _ => Err(format!("no axis {axis} in {}", Shape(&self.shape))),
        }
    }

    /// The same shape with another element type.
    pub(crate) fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, shape: self.shape.clone() }
    }

    /// The same element type with another shape.
    pub(crate) fn with_shape(&self, shape: Vec<Dim>) -> Self {
        Self { dtype: self.dtype, shape }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, Shape(&self.shape))
    }
}

/// Displays a shape: `[batch, sequence, 64]`.
pub(crate) struct Shape<'a>(pub(crate) &'a [Dim]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(Dim::to_string).collect();
        write!(f, "[{}]", sizes.join(", "))
    }
}

/// The shape of an element-wise operation: axes are matched from the last, and a size of 1 is repeated.
pub(crate) fn broadcast(left: &[Dim], right: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = left.len().max(right.len());
    let one = Dim::from(1_usize);
    let at =
        |shape: &[Dim], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(one.clone(), |i| shape[i].clone());
    (0..rank)
        .map(|axis| match (at(left, axis), at(right, axis)) {
            (a, b) if a == b => Ok(a),
            (a, b) if a == one => Ok(b),
            (a, b) if b == one => Ok(a),
            _ => Err(format!("cannot broadcast {} with {}", Shape(left), Shape(right))),
        })
        .collect()
}
