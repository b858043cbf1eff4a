//! Errors between a prompt and its text.

use std::path::PathBuf;

/// An error of generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime, or what was fed to it.
    #[error(transparent)]
    Session(#[from] densessm_session::Error),
    /// A file of the bundle that generation needs is missing or damaged.
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
    /// There is no token to continue from.
    #[error("prompt: empty, expected at least one token")]
    EmptyPrompt,
    /// A token that the model's embedding does not know.
    #[error("prompt: token {token} outside the vocabulary, expected an id below {vocabulary}")]
    Token {
        /// Its id.
        token: u32,
        /// Number of tokens the model knows.
        vocabulary: usize,
    },
    /// States of no sequence or of several, where one is continued.
    #[error("states: expected those of 1 sequence, got {0}")]
    Batch(usize),
    /// Saved states whose pending tokens cannot be read.
    #[error("states: expected a list of token ids as pending tokens, got `{0}`")]
    Pending(String),
    /// A sequence was given logits for a number of tokens that it had not to feed.
    #[error("sequence: expected 1 to {due} tokens fed, got {count}")]
    Fed {
        /// Number of tokens that were to be fed; 0 once the sequence has ended.
        due: usize,
        /// Number of tokens that were fed according to the caller.
        count: usize,
    },
    /// An option is out of its range.
    #[error("{name}: {problem}")]
    Option {
        /// The option.
        name: &'static str,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// No token can be chosen from these scores.
    #[error("logits: {0}")]
    Logits(String),
}
