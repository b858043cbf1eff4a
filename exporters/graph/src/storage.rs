//! How a prepared weight is stored: the initializers it becomes.

use crate::{DType, Dim, TensorType};

/// How a weight's numbers are stored in the graph: in one initializer or in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Storage {
    /// One initializer in a floating-point type, of the prepared shape. Numbers are rounded to nearest, ties to even; a
    /// finite number that would become infinite is an error of the export.
    Float(DType),
    /// 8 bits per number and one scale per block of the last axis: two initializers.
    ///
    /// A weight of shape `[.., n]` becomes `values`, uint8 `[.., ⌈n / size⌉, size]`, and `scales`, fp32
    /// `[.., ⌈n / size⌉]`. The number is `(value - 128) * scale`, with `scale` the block's largest magnitude divided by
    /// 127; a last block that is not full is padded with zeros (128). For a matrix `[out, in]` this is the layout of
    /// ONNX Runtime's `MatMulNBits` with 8 bits and without zero points.
    Int8Blocks {
        /// Numbers per block: a power of two, at least 16.
        size: usize,
    },
}

/// A tensor that the graph stores: a weight, or one of the tensors that a weight is stored as.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Initializer {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
}

impl Initializer {
    /// Returns the number of bytes that it takes in a file.
    pub fn bytes(&self) -> usize {
        self.shape.iter().fold(self.dtype.size(), |bytes, &size| bytes.saturating_mul(size))
    }

    pub(crate) fn tensor_type(&self) -> TensorType {
        TensorType { dtype: self.dtype, shape: self.shape.iter().map(|&size| Dim::from(size)).collect() }
    }
}

impl Storage {
    /// The initializers of a weight with that name and prepared shape, in the order in which their bytes are made.
    pub(crate) fn initializers(self, name: &str, shape: &[usize]) -> Result<Vec<Initializer>, String> {
        let initializers = match self {
            Self::Float(dtype) if dtype.is_float() => {
                vec![Initializer { name: name.to_owned(), dtype, shape: shape.to_vec() }]
            }
            Self::Float(dtype) => return Err(format!("expected a floating-point type to store it in, got {dtype}")),
            Self::Int8Blocks { size } => {
                let [outer @ .., columns] = shape else {
                    return Err("expected at least one axis to divide into blocks, got a scalar".to_owned());
                };
                if size < 16 || !size.is_power_of_two() {
                    return Err(format!("expected a block size that is a power of two from 16 on, got {size}"));
                }
                let blocks = columns.div_ceil(size);
                vec![
                    Initializer {
                        name: format!("{name}.values"),
                        dtype: DType::U8,
                        shape: [outer, &[blocks, size]].concat(),
                    },
                    Initializer {
                        name: format!("{name}.scales"),
                        dtype: DType::F32,
                        shape: [outer, &[blocks]].concat(),
                    },
                ]
            }
        };
        for Initializer { dtype, shape, .. } in &initializers {
            check_size(shape, dtype.size())?;
        }
        Ok(initializers)
    }
}

/// Checks that a tensor's bytes can be counted and addressed.
pub(crate) fn check_size(shape: &[usize], element: usize) -> Result<(), String> {
    let bytes = shape.iter().try_fold(element, |bytes, &size| bytes.checked_mul(size));
    match bytes {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => Err(format!("a tensor of shape {shape:?} is larger than memory can be")),
    }
}
