//! What a checkpoint says about a tensor: its name, shape, element type, and where its elements are stored.

use densessm_proto::DType;
use std::fmt;

/// A tensor of a checkpoint, without its elements.
///
/// [`Checkpoint::read`](crate::Checkpoint::read) reads the elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name, as the current versions of the model's code write it.
    pub name: String,
    /// The sizes, outermost first.
    pub shape: Vec<usize>,
    /// The element type in the file.
    pub dtype: StoredDType,
    /// Index of its file among the checkpoint's.
    pub(crate) file: usize,
    /// Position in that file of the first byte of element 0.
    pub(crate) offset: u64,
    /// Distance in elements between neighbours along each axis; row-major if absent.
    pub(crate) strides: Option<Vec<usize>>,
    /// Index of the checksum, among those of its file, of the bytes that hold the elements.
    pub(crate) checksum: Option<usize>,
}

impl Tensor {
    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredDType {
    /// An element type that this project knows.
    Known(DType),
    /// Any other type, by the name that safetensors gives it, such as `I16` or `F8_E4M3`. No weight of a supported
    /// model has such a type; tensors that no model asks for may.
    Unsupported(&'static str),
}

impl StoredDType {
    /// Returns the element type if it is a float, which every weight must be.
    pub fn float(self) -> Option<DType> {
        match self {
            Self::Known(dtype) if dtype.is_float() => Some(dtype),
            _ => None,
        }
    }
}

impl From<DType> for StoredDType {
    fn from(dtype: DType) -> Self {
        Self::Known(dtype)
    }
}

impl fmt::Display for StoredDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(dtype) => dtype.fmt(f),
            Self::Unsupported(name) => f.write_str(name),
        }
    }
}

/// Returns the number of elements of a shape that a file claims, unless it overflows.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}
