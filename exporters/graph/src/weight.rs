//! Weights as they are declared: a checkpoint tensor, its shape there, and what is done to it once, at export.

use crate::{DType, Dim, TensorType};

/// A weight of the graph: a tensor of the checkpoint, or some matrices of it side by side, prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name of the initializer: that of the tensor, or those of all joined by `+`, behind the first as in its scope.
    pub name: String,
    /// The checkpoint's tensors, one or several.
    pub parts: Vec<Part>,
    /// What is done to it at export.
    pub prepare: Prepare,
    /// Shape in the graph.
    pub stored: Vec<usize>,
    /// Element type in the graph.
    pub dtype: DType,
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

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
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
    /// The shape of some tensors, prepared together.
    pub(crate) fn stored(self, parts: &[Part]) -> Result<Vec<usize>, String> {
        let shape = match parts {
            [part] => part.shape.clone(),
            parts => below_each_other(parts)?,
        };
        match (self, shape.as_slice()) {
            (Self::AsIs | Self::NegExp, _) => Ok(shape),
            (Self::Transpose, &[rows, columns]) => Ok(vec![columns, rows]),
            (Self::Taps, &[channels, 1, taps]) => Ok(vec![taps, channels]),
            (Self::Transpose, _) => Err(format!("expected a matrix to transpose, got {shape:?}")),
            (Self::Taps, _) => Err(format!("expected a depthwise kernel [channels, 1, taps], got {shape:?}")),
        }
    }
}

/// The shape of matrices `[outᵢ, in]` below each other.
fn below_each_other(parts: &[Part]) -> Result<Vec<usize>, String> {
    let mut rows = 0;
    let mut columns = None;
    for part in parts {
        match part.shape[..] {
            [out, width] if columns.is_none_or(|columns| columns == width) => {
                rows += out;
                columns = Some(width);
            }
            _ => return Err(format!("expected matrices of one width, got {:?} for `{}`", part.shape, part.name)),
        }
    }
    Ok(vec![rows, columns.unwrap_or(0)])
}
