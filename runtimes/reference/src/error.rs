//! What can be wrong with a checkpoint.

/// Why a checkpoint cannot be computed with: where, what, expected and got.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Error {
    place: String,
    problem: String,
}

impl Error {
    /// An error at a file, a field or a tensor.
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}
