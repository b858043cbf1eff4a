//! Errors of kernels.

/// The reason why a kernel cannot be made or run. It displays as `operand: expected X, got Y`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operand}: {problem}")]
pub struct Error {
    operand: String,
    problem: String,
}

impl Error {
    /// Makes an error about an operand, an attribute, a result or the threads.
    pub fn new(operand: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { operand: operand.into(), problem: problem.into() }
    }
}

impl From<densessm_cuda::Error> for Error {
    fn from(error: densessm_cuda::Error) -> Self {
        Self::new("CUDA", error.to_string())
    }
}
