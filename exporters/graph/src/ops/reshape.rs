//! Reshaping: the same elements, in the same order, in another shape.

use super::first;
use crate::{Dim, Value, tensor_type::Shape};

impl<'g> Value<'g> {
    /// Replaces the last axis, static in size, by several: `[.., a·b] -> [.., a, b]`.
    #[track_caller]
    pub fn unflatten<const N: usize>(self, sizes: [usize; N]) -> Value<'g> {
        let sizes = sizes.map(Dim::from);
        let mut shape = self.shape();
        let last = shape.pop();
        if self.tensor().is_some() && last != Some(Dim::product(&sizes)) {
            self.fail(format!("expected a last axis of {}, got {}", Shape(&sizes), Shape(&self.shape())));
        }
        shape.extend(sizes);
        self.reshape(shape)
    }

    /// Joins the last `axes` axes into one: `[.., a, b] -> [.., a·b]`.
    #[track_caller]
    pub fn flatten(self, axes: usize) -> Value<'g> {
        let mut shape = self.shape();
        let Some(first) = shape.len().checked_sub(axes) else {
            if self.tensor().is_some() {
                self.fail(format!("expected at least {axes} axes, got {}", Shape(&shape)));
            }
            return self;
        };
        let joined = Dim::product(&shape.split_off(first));
        shape.push(joined);
        self.reshape(shape)
    }

    /// Gives the elements another shape, which must have as many.
    ///
    /// Sizes that are symbolic in the new shape may be products of others: ONNX infers one of them, and takes more than
    /// one from the shapes of the inputs at run time.
    #[track_caller]
    pub fn reshape(self, shape: Vec<Dim>) -> Value<'g> {
        let Some(tensor) = self.tensor() else { return self };
        let (before, after) = (Dim::product(&tensor.shape), Dim::product(&shape));
        // ONNX reads a size of 0 as "unchanged".
        let empty = shape.iter().zip(tensor.shape.iter().map(Some).chain(std::iter::repeat(None)));
        let empty = empty.into_iter().any(|(to, from)| to.known() == Some(0) && from != Some(to));
        if before != after || after.problem().is_some() || empty {
            self.fail(format!("cannot reshape {tensor} to {}", Shape(&shape)));
            return Value::new(self.graph(), crate::value::POISON);
        }
        let operand = self.reshape_operand(&tensor.shape, &shape);
        self.apply("Reshape", &[operand], vec![], |types| Ok(first(types)?.with_shape(shape)))
    }

    /// The shape operand: a constant where each symbol stays at its axis (0) or is the only other one (-1), else joined
    /// at run time from the sizes of inputs.
    #[track_caller]
    fn reshape_operand(self, from: &[Dim], to: &[Dim]) -> Value<'g> {
        let p = self.constants();
        let mut wildcard = false;
        let sizes: Option<Vec<i64>> = to
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim.constant() {
                Some(size) => Some(size),
                None if from.get(axis) == Some(dim) => Some(0),
                None if !wildcard => {
                    wildcard = true;
                    Some(-1)
                }
                None => None,
            })
            .collect();
        if let Some(sizes) = sizes {
            return p.integers(&format!("{sizes:?}"), &sizes);
        }
        // A loop: in a closure, the line that an error names would be one of this file.
        let mut extents = Vec::with_capacity(to.len());
        for dim in to {
            extents.push(p.extent(dim));
        }
        match extents.split_first() {
            Some((first, rest)) => first.concat(0, rest),
            None => p.integers("[]", &[]),
        }
    }
}
