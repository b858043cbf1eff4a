//! What can go wrong between a prompt and its text.

use std::path::PathBuf;

/// An error of generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime, or what was fed to it.
    #[error(transparent)]
    Session(#[from] densessm_session::Error),
    /// A file of the bundle that generation needs is missing or broken.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer failed on a text or on tokens.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// There is nothing to go on from.
    #[error("prompt: empty, expected at least one token")]
    EmptyPrompt,
    /// A token the model's embedding does not know.
    #[error("prompt: token {token} outside the vocabulary, expected an id below {vocabulary}")]
    Token {
        /// Its id.
        token: u32,
        /// Number of tokens the model knows.
        vocabulary: usize,
    },
    /// States of several sequences, where one is generated.
    #[error("states: expected those of 1 sequence, got {0}")]
    Batch(usize),
    /// Saved states whose pending tokens cannot be read.
    #[error("states: expected a list of token ids as pending tokens, got `{0}`")]
    Pending(String),
    /// An option out of its range.
    #[error("{name}: {problem}")]
    Option {
        /// The option.
        name: &'static str,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Scores from which no token can be chosen.
    #[error("logits: {0}")]
    Logits(String),
}
