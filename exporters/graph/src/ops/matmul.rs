//! Matrix products.

use super::two;
use crate::{Value, tensor_type::broadcast};

impl<'g> Value<'g> {
    /// Returns the matrix product over the last two axes, with the axes before them broadcast:
    /// `[.., m, k] · [.., k, n] -> [.., m, n]`.
    #[track_caller]
    pub fn matmul(self, other: Value<'g>) -> Value<'g> {
        self.apply("MatMul", &[other], vec![], |types| {
            let (left, right) = two(types)?;
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

    /// Returns `x Wᵀ` without a transposed copy of W: `[m, k], [n, k] -> [m, n]`.
    #[track_caller]
    pub fn gemm_t(self, weight: Value<'g>) -> Value<'g> {
        self.apply("Gemm", &[weight], vec![("transB", 1_i64.into())], |types| {
            let (left, right) = two(types)?;
            match (&left.shape[..], &right.shape[..]) {
                ([m, k], [n, k_right]) if k == k_right && left.dtype == right.dtype && left.dtype.is_float() => {
                    Ok(left.with_shape(vec![m.clone(), n.clone()]))
                }
                _ => Err(format!("cannot multiply {left} by the transpose of {right}")),
            }
        })
    }
}
