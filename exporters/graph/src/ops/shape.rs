//! Operators that move elements without changing them.

use crate::{Dim, Value, graph::Emit, tensor_type::Shape};

/// Joins values along an axis.
///
/// The values must agree in every other axis.
///
/// # Panics
/// When there is nothing to join.
#[track_caller]
pub fn concat<'g>(axis: isize, parts: &[Value<'g>]) -> Value<'g> {
    let [first, rest @ ..] = parts else { panic!("nothing to join") };
    first.apply("Concat", rest, vec![("axis", (axis as i64).into())], |types| {
        let at = types[0].axis(axis)?;
        let mut shape = types[0].shape.clone();
        for other in &types[1..] {
            let fits = other.dtype == types[0].dtype
                && other.shape.len() == shape.len()
                && (0..shape.len()).all(|i| i == at || other.shape[i] == shape[i]);
            if !fits {
                return Err(format!("cannot join {} and {other} along axis {axis}", types[0]));
            }
            shape[at] = shape[at].clone() + other.shape[at].clone();
        }
        Ok(types[0].with_shape(shape))
    })
}

impl<'g> Value<'g> {
    /// Equal parts along an axis of static size.
    #[track_caller]
    pub fn split<const N: usize>(self, axis: isize) -> [Value<'g>; N] {
        let size = self.size(axis);
        if !size.is_multiple_of(N) && self.tensor().is_some() {
            self.fail(format!("cannot split an axis of {size} into {N} equal parts"));
        }
        self.split_sizes(axis, [size / N; N])
    }

    /// Parts of the given sizes along an axis of static size.
    #[track_caller]
    pub fn split_sizes<const N: usize>(self, axis: isize, sizes: [usize; N]) -> [Value<'g>; N] {
        let parts = self.split_into(axis, &sizes);
        std::array::from_fn(|i| parts[i])
    }

    /// As [`Value::split_sizes`], for as many parts as there are.
    #[track_caller]
    pub fn split_into(self, axis: isize, sizes: &[usize]) -> Vec<Value<'g>> {
        let list: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        let operand = self.graph().root().integers(&format!("{list:?}"), &list);
        let emit = Emit::onnx("Split", vec![("axis", (axis as i64).into())]);
        self.graph().emit_slots(emit, &[Some(self), Some(operand)], sizes.len(), |types| {
            let at = types[0].axis(axis)?;
            let whole = Dim::from(sizes.iter().sum::<usize>());
            if types[0].shape[at] != whole {
                return Err(format!("cannot split axis {axis} of {} into {sizes:?}", types[0]));
            }
            let part = |&size: &usize| {
                let mut shape = types[0].shape.clone();
                shape[at] = Dim::from(size);
                types[0].with_shape(shape)
            };
            Ok(sizes.iter().map(part).collect())
        })
    }

    /// Elements `start..end` along an axis; negative bounds count from the end, `None` is the end itself.
    #[track_caller]
    pub fn slice(self, axis: isize, start: i64, end: Option<i64>) -> Value<'g> {
        let root = self.graph().root();
        let operand = |bound: i64| root.integers(&format!("[{bound}]"), &[bound]);
        let operands = [operand(start), operand(end.unwrap_or(i64::MAX)), operand(axis as i64)];
        self.apply("Slice", &operands, vec![], |types| {
            let at = types[0].axis(axis)?;
            let mut shape = types[0].shape.clone();
            let bound = |bound: i64| if bound < 0 { shape[at].clone() + bound } else { Dim::from(bound) };
            let length = end.map_or_else(|| shape[at].clone(), bound) - bound(start);
            // A symbolic length is taken to reach as far as the bounds say.
            if shape[at].known().is_some_and(|size| length.known().is_none_or(|length| length > size)) {
                return Err(format!("cannot take {start}..{end:?} of axis {axis} of {}", types[0]));
            }
            shape[at] = length;
            Ok(types[0].with_shape(shape))
        })
    }

    /// The axes in another order.
    #[track_caller]
    pub fn transpose<const N: usize>(self, order: [usize; N]) -> Value<'g> {
        let perm = order.iter().map(|&axis| axis as i64).collect::<Vec<_>>();
        self.apply("Transpose", &[], vec![("perm", perm.into())], |types| {
            let mut sorted = order;
            sorted.sort_unstable();
            if types[0].shape.len() != N || sorted.iter().enumerate().any(|(i, &axis)| i != axis) {
                return Err(format!("cannot order the axes of {} as {order:?}", types[0]));
            }
            Ok(types[0].with_shape(order.iter().map(|&axis| types[0].shape[axis].clone()).collect()))
        })
    }

    /// A new axis of size 1 at that place of the result; -1 is behind the last.
    #[track_caller]
    pub fn unsqueeze(self, axis: isize) -> Value<'g> {
        let axes = self.graph().root().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("Unsqueeze", &[axes], vec![], |types| {
            let rank = types[0].shape.len() as isize + 1;
            let at = if axis < 0 { axis + rank } else { axis };
            if !(0..rank).contains(&at) {
                return Err(format!("no place {axis} for a new axis in {}", types[0]));
            }
            let mut shape = types[0].shape.clone();
            shape.insert(at as usize, Dim::from(1_usize));
            Ok(types[0].with_shape(shape))
        })
    }

    /// Without an axis of size 1.
    #[track_caller]
    pub fn squeeze(self, axis: isize) -> Value<'g> {
        let axes = self.graph().root().integers(&format!("[{axis}]"), &[axis as i64]);
        self.apply("Squeeze", &[axes], vec![], |types| {
            let at = types[0].axis(axis)?;
            let mut shape = types[0].shape.clone();
            match shape.remove(at).known() {
                Some(1) => Ok(types[0].with_shape(shape)),
                _ => Err(format!("expected size 1 at axis {axis} of {}", types[0])),
            }
        })
    }

    /// The last axis as several: `[.., a·b] -> [.., a, b]`.
    #[track_caller]
    pub fn unflatten<const N: usize>(self, sizes: [usize; N]) -> Value<'g> {
        let mut shape = self.shape();
        let last = shape.pop().and_then(|dim| dim.known());
        if self.tensor().is_some() && last != Some(sizes.iter().product()) {
            self.fail(format!("expected a last axis of {sizes:?}, got {}", Shape(&self.shape())));
        }
        shape.extend(sizes.map(Dim::from));
        self.reshape(shape)
    }

    /// The last `axes` axes, static in size, as one: `[.., a, b] -> [.., a·b]`.
    #[track_caller]
    pub fn flatten(self, axes: usize) -> Value<'g> {
        let mut shape = self.shape();
        if shape.len() < axes {
            if self.tensor().is_some() {
                self.fail(format!("expected at least {axes} axes, got {}", Shape(&shape)));
            }
            return self;
        }
        let merged = shape.split_off(shape.len() - axes).into_iter().fold(Dim::from(1_usize), Dim::mul_by);
        shape.push(merged);
        self.reshape(shape)
    }

    /// The same elements in another shape of as many.
    #[track_caller]
    pub fn reshape(self, shape: Vec<Dim>) -> Value<'g> {
        let Some(tensor) = self.tensor() else { return self };
        let operand = self.reshape_operand(&tensor.shape, &shape);
        self.apply("Reshape", &[operand], vec![], |types| {
            let count = |shape: &[Dim]| shape.iter().cloned().fold(Dim::from(1_usize), Dim::mul_by);
            if count(&types[0].shape) != count(&shape) {
                return Err(format!("cannot reshape {} to {}", types[0], Shape(&shape)));
            }
            Ok(types[0].with_shape(shape))
        })
    }

    /// The shape operand: a literal where each symbol stays in its place (0) or there is one other (-1), else
    /// joined at run time from the sizes of inputs.
    #[track_caller]
    fn reshape_operand(self, from: &[Dim], to: &[Dim]) -> Value<'g> {
        let root = self.graph().root();
        let mut wildcard = false;
        let sizes: Option<Vec<i64>> = to
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim.known() {
                Some(size) => Some(size as i64),
                None if from.get(axis) == Some(dim) => Some(0),
                None if !wildcard => {
                    wildcard = true;
                    Some(-1)
                }
                None => None,
            })
            .collect();
        match sizes {
            Some(sizes) => root.integers(&format!("{sizes:?}"), &sizes),
            None => concat(0, &to.iter().map(|dim| root.extent(dim)).collect::<Vec<_>>()),
        }
    }
}
