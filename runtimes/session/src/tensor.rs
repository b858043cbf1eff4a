//! Tensors in host memory: the inputs and outputs of `run`, and the content of a snapshot.

use densessm_proto::DType;

/// A dense tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The sizes of its axes, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Values,
}

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 32-bit floats.
    Float32(Vec<f32>),
    /// 64-bit signed integers.
    Int64(Vec<i64>),
    /// 32-bit signed integers.
    Int32(Vec<i32>),
}

impl HostTensor {
    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        match self.values {
            Values::Float32(_) => DType::F32,
            Values::Int64(_) => DType::I64,
            Values::Int32(_) => DType::I32,
        }
    }
}

impl Values {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Float32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Int32(values) => values.len(),
        }
    }

    /// Returns whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
