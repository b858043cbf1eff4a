//! What can prevent an evaluation.

/// An error of [`eval`](crate::eval).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A runtime failed.
    #[error(transparent)]
    Runtime(#[from] densessm_session::Error),
    /// The text cannot be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] densessm_generate::Error),
    /// An option is out of range, the text is too short, or the bundle holds no suitable graph.
    #[error("{what}: {problem}")]
    Options {
        /// The option, the text or the bundle.
        what: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
}

impl Error {
    pub(super) fn options(what: &'static str, problem: String) -> Self {
        Self::Options { what, problem }
    }
}
