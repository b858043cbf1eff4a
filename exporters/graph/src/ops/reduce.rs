//! Reductions along one axis, which stays with size 1.

use crate::{Dim, TensorType, Value};

impl<'g> Value<'g> {
    /// Sum along an axis, which stays with size 1.
    #[track_caller]
    pub fn reduce_sum(self, axis: isize) -> Value<'g> {
        // The sum takes its axes as an operand since version 13.
        let axes = self.graph().root().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("ReduceSum", &[axes], vec![("keepdims", 1_i64.into())], |types| reduced(&types[0], axis))
    }

    /// Mean along an axis, which stays with size 1.
    #[track_caller]
    pub fn reduce_mean(self, axis: isize) -> Value<'g> {
        // The mean takes its axes as an operand since version 18.
        let axes = self.graph().root().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("ReduceMean", &[axes], vec![("keepdims", 1_i64.into())], |types| reduced(&types[0], axis))
    }
}

fn reduced(tensor: &TensorType, axis: isize) -> Result<TensorType, String> {
    let mut shape = tensor.shape.clone();
    shape[tensor.axis(axis)?] = Dim::from(1_usize);
    Ok(tensor.with_shape(shape))
}
