//! Joining and splitting along an axis.

use super::first;
use crate::{Dim, Value, emit::Emit, value::POISON};

impl<'g> Value<'g> {
    /// Joins this value and others along an axis; -1 is the last. All must agree in element type and in every other
    /// axis.
    #[track_caller]
    pub fn concat(self, axis: isize, others: &[Value<'g>]) -> Value<'g> {
        self.apply("Concat", others, vec![("axis", (axis as i64).into())], |types| {
            let first = first(types)?;
            let at = first.axis(axis)?;
            let mut shape = first.shape.clone();
            for other in types.iter().skip(1) {
                let fits = other.dtype == first.dtype
                    && other.shape.len() == shape.len()
                    && (0..shape.len()).all(|i| i == at || other.shape[i] == shape[i]);
                if !fits {
                    return Err(format!("cannot join {first} and {other} along axis {axis}"));
                }
                shape[at] = shape[at].clone() + other.shape[at].clone();
            }
            Ok(first.with_shape(shape))
        })
    }

    /// Splits an axis of static size into equal parts.
    #[track_caller]
    pub fn split<const N: usize>(self, axis: isize) -> [Value<'g>; N] {
        let size = self.size(axis);
        let part = size.checked_div(N).unwrap_or(0);
        if part * N != size && self.tensor().is_some() {
            self.fail(format!("cannot split an axis of {size} into {N} equal parts"));
        }
        self.split_sizes(axis, [part; N])
    }

    /// Splits an axis of static size into parts of the given sizes.
    #[track_caller]
    pub fn split_sizes<const N: usize>(self, axis: isize, sizes: [usize; N]) -> [Value<'g>; N] {
        let parts = self.split_into(axis, &sizes);
        std::array::from_fn(|i| parts.get(i).copied().unwrap_or(Value::new(self.graph(), POISON)))
    }

    /// Splits an axis of static size into parts of the given sizes, whose number need not be known at compile time.
    #[track_caller]
    pub fn split_into(self, axis: isize, sizes: &[usize]) -> Vec<Value<'g>> {
        if sizes.is_empty() {
            self.fail("expected at least one part to split into".to_owned());
            return Vec::new();
        }
        let list: Vec<i64> = sizes.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let operand = self.constants().integers(&format!("{list:?}"), &list);
        let emit = Emit::onnx("Split", vec![("axis", (axis as i64).into())]);
        self.graph().emit_slots(emit, &[Some(self), Some(operand)], sizes.len(), |types| {
            let whole = first(types)?;
            let at = whole.axis(axis)?;
            let sum = sizes.iter().fold(Dim::from(0_usize), |sum, &size| sum + size);
            if whole.shape[at] != sum {
                return Err(format!("cannot split axis {axis} of {whole} into {sizes:?}"));
            }
            let part = |&size: &usize| {
                let mut shape = whole.shape.clone();
                shape[at] = Dim::from(size);
                whole.with_shape(shape)
            };
            Ok(sizes.iter().map(part).collect())
        })
    }
}
