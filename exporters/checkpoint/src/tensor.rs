//! A tensor of a checkpoint: where its elements lie, and nothing of them.

use std::fmt;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, in the form that the current versions of the model's code write.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub dtype: DType,
    /// Index of its file among the checkpoint's.
    pub(crate) file: usize,
    /// First byte of element 0 in that file.
    pub(crate) offset: u64,
    /// Elements between neighbours along each axis; row-major if absent.
    pub(crate) strides: Option<Vec<usize>>,
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// 64-bit floats.
    F64,
    /// Something else, which no weight of these models is: its name and the bytes of an element.
    Other(&'static str, usize),
}

impl DType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F64 => "F64",
            Self::Other(name, _) => name,
        })
    }
}

/// Number of elements of a shape that a file claims, if it is a number at all.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}
