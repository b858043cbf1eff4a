//! Why a scheduler cannot start, why it refuses a request, and why a request that it accepted fails.

use std::path::PathBuf;

/// An error that keeps a scheduler from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is out of its range.
    #[error("{name}: {problem}")]
    Option {
        /// The option.
        name: &'static str,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// The folder of the cache cannot be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The underlying I/O error.
        error: std::io::Error,
    },
    /// The runtime cannot allocate the states.
    #[error(transparent)]
    Session(#[from] densessm_session::Error),
    /// The operating system provides no thread.
    #[error("thread of the scheduler: {0}")]
    Thread(std::io::Error),
}

/// The reason why a request is not accepted. Nothing has been computed for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The prompt has too many tokens.
    #[error("prompt: expected at most {limit} tokens, got {got}")]
    PromptTooLong {
        /// The maximum.
        limit: usize,
        /// The tokens of the prompt.
        got: usize,
    },
    /// More tokens are to be generated than the server allows.
    #[error("max_tokens: expected at most {limit}, got {got}")]
    TooManyNewTokens {
        /// The maximum.
        limit: usize,
        /// The tokens that were asked for.
        got: usize,
    },
    /// More choices than slots, or none.
    #[error("n: expected 1 to {limit} choices, got {got}")]
    Choices {
        /// The number of slots.
        limit: usize,
        /// The choices that were asked for.
        got: usize,
    },
    /// As many requests as allowed are waiting.
    #[error("queue: {limit} requests are waiting already; try again later")]
    QueueFull {
        /// The maximum.
        limit: usize,
    },
    /// The model does not know a token of the prompt.
    #[error("prompt: expected token ids below {vocabulary}, got {token}")]
    Token {
        /// Its id.
        token: u32,
        /// Number of tokens that the model knows.
        vocabulary: usize,
    },
    /// The prompt or an option is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The scheduler is shutting down or has ended.
    #[error("the server is shutting down")]
    Stopping,
}

/// The reason why a request that was accepted did not end normally.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Its time limit has passed.
    #[error("the time limit of the request has passed")]
    TimedOut,
    /// The scheduler was shut down before the request ended.
    #[error("the server was shut down before the request ended")]
    Stopping,
    /// No sequence is kept under this name.
    #[error("state: no saved state with the id `{0}`; it may have been replaced by newer ones")]
    UnknownState(String),
    /// The prompt does not fit the saved sequence.
    #[error("{0}")]
    Invalid(String),
    /// The runtime failed.
    #[error("{0}")]
    Runtime(String),
}
