//! ONNX's operators as methods of [`Value`](crate::Value), one per operator in use: a misspelt one does not compile.

mod arithmetic;
mod elementwise;
mod gather;
mod join;
mod matmul;
mod reduce;
mod reshape;
mod scan;
mod shape;
mod sizes;

use crate::{Scope, TensorType, Value};

impl<'g> Value<'g> {
    /// The scope in which constants for operations on this value are declared.
    pub(crate) fn constants(self) -> Scope<'g> {
        Scope::new(self.graph())
    }
}

/// The first operand.
fn first(types: &[TensorType]) -> Result<&TensorType, String> {
    types.first().ok_or_else(|| count(1, types))
}

/// The two operands.
fn two(types: &[TensorType]) -> Result<(&TensorType, &TensorType), String> {
    match types {
        [first, second] => Ok((first, second)),
        _ => Err(count(2, types)),
    }
}

fn count(expected: usize, types: &[TensorType]) -> String {
    format!("expected {expected} operands, got {}", types.len())
}
