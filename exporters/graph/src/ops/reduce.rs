//! Reductions along one axis, which remains with size 1.

use super::first;
use crate::{DType, Dim, TensorType, Value};

impl<'g> Value<'g> {
    /// Returns the sum along an axis, which remains with size 1.
    #[track_caller]
    pub fn reduce_sum(self, axis: isize) -> Value<'g> {
        // The sum takes its axes as an operand since version 13.
        let axes = self.constants().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("ReduceSum", &[axes], vec![("keepdims", 1_i64.into())], |types| reduced(first(types)?, axis))
    }

    /// Returns the mean along an axis, which remains with size 1.
    #[track_caller]
    pub fn reduce_mean(self, axis: isize) -> Value<'g> {
        // The mean takes its axes as an operand since version 18.
        let axes = self.constants().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("ReduceMean", &[axes], vec![("keepdims", 1_i64.into())], |types| reduced(first(types)?, axis))
    }
}

fn reduced(tensor: &TensorType, axis: isize) -> Result<TensorType, String> {
    let mut shape = tensor.shape.clone();
    let at = tensor.axis(axis)?;
    if matches!(tensor.dtype, DType::Bool | DType::I8 | DType::U8) {
        return Err(format!("expected numbers of at least 16 bits, got {tensor}"));
    }
    shape[at] = Dim::from(1_usize);
    Ok(tensor.with_shape(shape))
}
