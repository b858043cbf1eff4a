//! Sizes of axes as values.

use crate::{DType, Dim, Scope, TensorType, Value, arena::ValueId};
use std::panic::Location;

impl<'g> Scope<'g> {
    /// Returns the integers `0 … extent-1`: int64 `[extent]`. A symbolic extent is taken from the shape of an input
    /// that has it as an axis.
    #[track_caller]
    pub fn range(self, extent: impl Into<Dim>) -> Value<'g> {
        let extent = extent.into();
        let limit = match extent.known() {
            Some(size) => self.integer(i64::try_from(size).unwrap_or(i64::MAX)),
            None => self.extent(&extent).squeeze(0),
        };
        self.integer(0).apply("Range", &[limit, self.integer(1)], vec![], |_| Ok(TensorType::new(DType::I64, [extent])))
    }

    /// A size as a value: int64 `[1]`. A symbol is taken from an input of the current body that has it as an axis.
    #[track_caller]
    pub(crate) fn extent(self, dim: &Dim) -> Value<'g> {
        if let Some(size) = dim.known() {
            return self.integers(&format!("[{size}]"), &[i64::try_from(size).unwrap_or(i64::MAX)]);
        }
        let Some((id, axis)) = self.input_with(dim) else {
            let problem = format!("no input has an axis of size {dim} to take it from");
            self.graph().fail(format!("size {dim}"), problem, Location::caller());
            return self.poison();
        };
        let axis = axis as i64;
        Value::new(self.graph(), id).apply(
            "Shape",
            &[],
            vec![("start", axis.into()), ("end", (axis + 1).into())],
            |_| Ok(TensorType::new(DType::I64, [1_usize])),
        )
    }

    /// The first input of the current body, or of one around it, with an axis of that size; and the axis.
    fn input_with(self, dim: &Dim) -> Option<(ValueId, usize)> {
        let arena = self.graph().arena.borrow();
        let bodies = std::iter::successors(Some(arena.current), |&body| arena.bodies[body].parent);
        bodies.flat_map(|body| &arena.bodies[body].inputs).find_map(|&id| {
            let axis = arena.values[id].tensor.shape.iter().position(|size| size == dim)?;
            Some((id, axis))
        })
    }
}
