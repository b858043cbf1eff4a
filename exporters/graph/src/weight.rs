//! Weights as they are declared: a checkpoint tensor, its shape there, and what is done to it once, at export.

use crate::{Dim, Dtype, TensorType};

/// A weight of the graph: a tensor of the checkpoint, prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name in the checkpoint, and of the initializer.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// What is done to it at export.
    pub prepare: Prepare,
    /// Shape in the graph.
    pub stored: Vec<usize>,
    /// Element type in the graph.
    pub dtype: Dtype,
}

impl Weight {
    /// Bytes in the graph's data file.
    pub fn bytes(&self) -> usize {
        self.stored.iter().product::<usize>() * self.dtype.size()
    }

    pub(crate) fn tensor_type(&self) -> TensorType {
        TensorType { dtype: self.dtype, shape: self.stored.iter().map(|&size| Dim::from(size)).collect() }
    }
}

/// What is done to a checkpoint tensor once, at export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prepare {
    /// Nothing.
    AsIs,
    /// `[out, in] -> [in, out]`, so that `x Wᵀ` is a plain product.
    Transpose,
    /// `-exp(w)`, element by element, computed in f64.
    NegExp,
    /// A depthwise kernel, tap by tap: `[channels, 1, taps] -> [taps, channels]`.
    Taps,
}

impl Prepare {
    pub(crate) fn shape(self, shape: &[usize]) -> Result<Vec<usize>, String> {
        match (self, shape) {
            (Self::AsIs | Self::NegExp, _) => Ok(shape.to_vec()),
            (Self::Transpose, &[rows, columns]) => Ok(vec![columns, rows]),
            (Self::Taps, &[channels, 1, taps]) => Ok(vec![taps, channels]),
            (Self::Transpose, _) => Err(format!("expected a matrix to transpose, got {shape:?}")),
            (Self::Taps, _) => Err(format!("expected a depthwise kernel [channels, 1, taps], got {shape:?}")),
        }
    }
}
