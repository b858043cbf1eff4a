//! Selecting rows by index.

use super::two;
use crate::{DType, TensorType, Value};

impl<'g> Value<'g> {
    /// Selects rows of a table: `[rows, ..]` at `[..indices]` gives `[..indices, ..]`.
    #[track_caller]
    pub fn gather(self, indices: Value<'g>) -> Value<'g> {
        self.apply("Gather", &[indices], vec![("axis", 0_i64.into())], |types| {
            let (table, indices) = two(types)?;
            let [_, rest @ ..] = &table.shape[..] else {
                return Err(format!("expected a table, got {table}"));
            };
            check_indices(indices)?;
            Ok(table.with_shape([&indices.shape[..], rest].concat()))
        })
    }

    /// Selects elements of the second axis, separately for each row of the first: `[batch, n, ..]` at `[batch, ..k, 1]`
    /// gives `[batch, ..k, ..]`.
    #[track_caller]
    pub fn gather_per_row(self, indices: Value<'g>) -> Value<'g> {
        self.apply("GatherND", &[indices], vec![("batch_dims", 1_i64.into())], |types| {
            let (table, indices) = two(types)?;
            check_indices(indices)?;
            match (&table.shape[..], &indices.shape[..]) {
                ([batch, _, rest @ ..], [batch_indices, k @ .., last])
                    if batch == batch_indices && last.known() == Some(1) =>
                {
                    Ok(table.with_shape([std::slice::from_ref(batch), k, rest].concat()))
                }
                _ => Err(format!("cannot select {indices} from {table} row by row")),
            }
        })
    }
}

fn check_indices(indices: &TensorType) -> Result<(), String> {
    match indices.dtype {
        DType::I64 | DType::I32 => Ok(()),
        _ => Err(format!("expected integer indices, got {indices}")),
    }
}
