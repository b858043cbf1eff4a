//! Element types and shapes, and the two rules that most operators share: broadcasting and axis counting.

use crate::Dim;
use densessm_proto::onnx::tensor_proto::DataType;
use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Truth value.
    Bool,
}

impl Dtype {
    /// ONNX's number for the type.
    pub fn onnx(self) -> DataType {
        match self {
            Self::F32 => DataType::Float,
            Self::F16 => DataType::Float16,
            Self::BF16 => DataType::Bfloat16,
            Self::I64 => DataType::Int64,
            Self::I32 => DataType::Int32,
            Self::Bool => DataType::Bool,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Bool => 1,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::Bool => "bool",
        })
    }
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type from its parts.
    pub fn new<D: Into<Dim>>(dtype: Dtype, shape: impl IntoIterator<Item = D>) -> Self {
        Self { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// Index of an axis that may count from the end: -1 is the last.
    pub(crate) fn axis(&self, axis: isize) -> Result<usize, String> {
        let rank = self.shape.len();
        let index = if axis < 0 { axis + rank as isize } else { axis };
        match usize::try_from(index) {
            Ok(index) if index < rank => Ok(index),
            _ => Err(format!("no axis {axis} in {}", Shape(&self.shape))),
        }
    }

    /// The same shape with another element type.
    pub(crate) fn with_dtype(&self, dtype: Dtype) -> Self {
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

/// A shape as one writes it: `[batch, sequence, 64]`.
pub(crate) struct Shape<'a>(pub(crate) &'a [Dim]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(Dim::to_string).collect();
        write!(f, "[{}]", sizes.join(", "))
    }
}

/// The shape of an element-wise operation: axes are matched from the end, and a size of 1 stretches.
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
