//! Matrix products.

use crate::{Dim, TensorType, Value, tensor_type::broadcast};

impl<'g> Value<'g> {
    /// Matrix product over the last two axes, with the axes before them broadcast:
    /// `[.., m, k] · [.., k, n] -> [.., m, n]`.
    #[track_caller]
    pub fn matmul(self, other: Value<'g>) -> Value<'g> {
        self.apply("MatMul", &[other], vec![], |types| {
            let (left, right) = (&types[0], &types[1]);
            let mismatch = || Err(format!("cannot multiply {left} by {right}"));
            let ([batch_left @ .., m, k], [batch_right @ .., k_right, n]) = (&left.shape[..], &right.shape[..]) else {
                return mismatch();
            };
            if k != k_right || left.dtype != right.dtype || !left.dtype.is_float() {
                return mismatch();
            }
            let mut shape = broadcast(batch_left, batch_right)?;
            shape.extend([m.clone(), n.clone()]);
            Ok(left.with_shape(shape))
        })
    }

    /// `x Wᵀ` without turning W: `[m, k], [n, k] -> [m, n]`.
    #[track_caller]
    pub fn gemm_t(self, weight: Value<'g>) -> Value<'g> {
        self.apply("Gemm", &[weight], vec![("transB", 1_i64.into())], |types| {
            let mismatch = || format!("cannot multiply {} by the transpose of {}", types[0], types[1]);
            let shape: Vec<Dim> = match (&types[0].shape[..], &types[1].shape[..]) {
                ([m, k], [n, k_right]) if k == k_right => vec![m.clone(), n.clone()],
                _ => return Err(mismatch()),
            };
            if types[0].dtype != types[1].dtype || !types[0].dtype.is_float() {
                return Err(mismatch());
            }
            Ok(TensorType { dtype: types[0].dtype, shape })
        })
    }
}
