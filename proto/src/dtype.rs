//! Element types of tensors.

use serde::{Deserialize, Serialize};

/// The element type of a tensor.
///
/// Displays as `fp32`, `int64`, …; manifests spell it out: `float32`, `int64`, ….
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DType {
    /// 64-bit float.
    #[serde(rename = "float64")]
    F64,
    /// 32-bit float.
    #[serde(rename = "float32")]
    F32,
    /// IEEE half precision.
    #[serde(rename = "float16")]
    F16,
    /// The upper half of a 32-bit float.
    #[serde(rename = "bfloat16")]
    BF16,
    /// 64-bit signed integer.
    #[serde(rename = "int64")]
    I64,
    /// 32-bit signed integer.
    #[serde(rename = "int32")]
    I32,
    /// 8-bit signed integer.
    #[serde(rename = "int8")]
    I8,
    /// 8-bit unsigned integer.
    #[serde(rename = "uint8")]
    U8,
    /// Truth value, one byte.
    #[serde(rename = "bool")]
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The name that messages and the text form of graphs use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "fp64",
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::BF16 => "bf16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
