//! What can be wrong with a call.

/// Why a kernel does not run: its message says where, what, expected and got.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operand}: {problem}")]
pub struct Error {
    operand: String,
    problem: String,
}

impl Error {
    /// An error about an operand or an attribute.
    pub fn new(operand: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { operand: operand.into(), problem: problem.into() }
    }
}
