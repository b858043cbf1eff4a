//! ONNX's file format, generated from `proto/onnx.proto` and committed; `proto/tests/generated.rs` keeps it current.
#![allow(clippy::doc_markdown)]

use crate::DType;
use tensor_proto::DataType;

include!("generated/onnx.rs");

impl From<DType> for DataType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self::Double,
            DType::F32 => Self::Float,
            DType::F16 => Self::Float16,
            DType::BF16 => Self::Bfloat16,
            DType::I64 => Self::Int64,
            DType::I32 => Self::Int32,
            DType::I8 => Self::Int8,
            DType::U8 => Self::Uint8,
            DType::Bool => Self::Bool,
        }
    }
}
