//! The options of a sequence, and the reasons why one ends.

use crate::Sampling;

/// How a sequence is continued, and what ends it.
///
/// ```
/// use densessm_generate::{GenerateOptions, Sampling};
///
/// let options = GenerateOptions::default()
///     .with_max_new_tokens(64)
///     .with_sampling(Sampling::new(0.8).with_top_k(40).with_seed(7))
///     .with_stop(["\n\n"]);
/// assert_eq!(options.stop, ["\n\n"]);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Maximum number of tokens to generate. With 0 the prompt is read and nothing is generated.
    pub max_new_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the sequence; they have no text. [`GenerationConfig`](crate::GenerationConfig) reads those of a
    /// bundle.
    pub eos: Vec<u32>,
    /// Texts that end the sequence; they are not part of its text.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    /// Greedy, at most 256 tokens, and nothing else that ends the sequence.
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::GREEDY, eos: Vec::new(), stop: Vec::new() }
    }
}

impl GenerateOptions {
    /// Sets the maximum number of tokens to generate.
    #[must_use]
    pub fn with_max_new_tokens(self, max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..self }
    }

    /// Sets how a token is chosen.
    #[must_use]
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// Sets the tokens that end the sequence.
    #[must_use]
    pub fn with_eos(self, eos: impl Into<Vec<u32>>) -> Self {
        Self { eos: eos.into(), ..self }
    }

    /// Sets the texts that end the sequence.
    #[must_use]
    pub fn with_stop<T: Into<String>>(self, stop: impl IntoIterator<Item = T>) -> Self {
        Self { stop: stop.into_iter().map(Into::into).collect(), ..self }
    }
}

/// The reason why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose an end-of-sequence token.
    EndOfSequence,
    /// The text contains a stop string.
    StopString,
    /// The maximum number of tokens was generated.
    Length,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// Returns its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfSequence => "end_of_sequence",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
