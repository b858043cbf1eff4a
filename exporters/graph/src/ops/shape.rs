//! Operators that select or rearrange elements by axis.

use super::first;
use crate::{Dim, Value};

impl<'g> Value<'g> {
    /// Selects elements `start..end` along an axis. Negative bounds count from the end; an absent `end` is the end
    /// itself.
    ///
    /// Along an axis of symbolic size, the bounds are assumed to lie within it.
    #[track_caller]
    pub fn slice(self, axis: isize, start: i64, end: Option<i64>) -> Value<'g> {
        let p = self.constants();
        let last = end.unwrap_or(i64::MAX);
        let starts = p.integers(&format!("[{start}]"), &[start]);
        let ends = p.integers(&format!("[{last}]"), &[last]);
        let axes = p.integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("Slice", &[starts, ends, axes], vec![], |types| {
            let tensor = first(types)?;
            let at = tensor.axis(axis)?;
            let mut shape = tensor.shape.clone();
            let size = shape[at].clone();
            let bound = |bound: i64| if bound < 0 { size.clone() + bound } else { Dim::from(bound) };
            let (first, last) = (bound(start), end.map_or_else(|| size.clone(), bound));
            let length = last.clone() - first.clone();
            // What is negative for sure: the start, the length, or what is left after the end.
            let negative = |dim: &Dim| dim.problem().is_some();
            if [&first, &length, &(size - last)].into_iter().any(negative) {
                let end = end.map_or_else(String::new, |end| end.to_string());
                return Err(format!("cannot take {start}..{end} of axis {axis} of {tensor}"));
            }
            shape[at] = length;
            Ok(tensor.with_shape(shape))
        })
    }

    /// Puts the axes into another order.
    #[track_caller]
    pub fn transpose<const N: usize>(self, order: [usize; N]) -> Value<'g> {
        let perm = order.iter().map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect::<Vec<_>>();
        self.apply("Transpose", &[], vec![("perm", perm.into())], |types| {
            let tensor = first(types)?;
            let mut sorted = order;
            sorted.sort_unstable();
            if tensor.shape.len() != N || sorted.iter().enumerate().any(|(i, &axis)| i != axis) {
                return Err(format!("cannot order the axes of {tensor} as {order:?}"));
            }
            Ok(tensor.with_shape(order.iter().map(|&axis| tensor.shape[axis].clone()).collect()))
        })
    }

    /// Inserts an axis of size 1 at that index of the result; -1 makes it the last.
    #[track_caller]
    pub fn unsqueeze(self, axis: isize) -> Value<'g> {
        let axes = self.constants().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("Unsqueeze", &[axes], vec![], |types| {
            let tensor = first(types)?;
            let rank = tensor.shape.len() + 1;
            let at = if axis < 0 { axis.saturating_add_unsigned(rank) } else { axis };
            match usize::try_from(at) {
                Ok(at) if at < rank => {
                    let mut shape = tensor.shape.clone();
                    shape.insert(at, Dim::from(1_usize));
                    Ok(tensor.with_shape(shape))
                }
                _ => Err(format!("cannot insert an axis at {axis} of {tensor}")),
            }
        })
    }

    /// Removes an axis of size 1.
    #[track_caller]
    pub fn squeeze(self, axis: isize) -> Value<'g> {
        let axes = self.constants().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("Squeeze", &[axes], vec![], |types| {
            let tensor = first(types)?;
            let mut shape = tensor.shape.clone();
            match shape.remove(tensor.axis(axis)?).known() {
                Some(1) => Ok(tensor.with_shape(shape)),
                _ => Err(format!("expected size 1 at axis {axis} of {tensor}")),
            }
        })
    }
}
