//! What a client asks for.

use densessm_generate::GenerateOptions;
use std::time::Duration;

/// What a request continues.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Tokens from the start of a sequence, as they are.
    Prompt(Vec<u32>),
    /// A saved sequence, and tokens after it (none continues it as it is).
    Saved {
        /// Its name.
        id: String,
        /// Further tokens.
        tokens: Vec<u32>,
    },
}

/// One prompt to be continued, once or several times.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What is continued.
    pub input: Input,
    /// How it is continued and what ends it.
    pub options: GenerateOptions,
    /// Number of continuations. Choice `i` draws with the seed of the options plus `i`.
    pub choices: usize,
    /// Number of alternatives that are returned with the log-probability of each generated token; none returns no
    /// log-probabilities.
    pub logprobs: Option<usize>,
    /// Whether the log-probabilities of the prompt's tokens are returned. The prompt is then read from its beginning.
    pub prompt_logprobs: bool,
    /// Whether the prompt may continue cached states, and states of it are cached.
    pub cache: bool,
    /// Whether each finished sequence is kept under a name, to be continued or fetched.
    pub save: bool,
    /// The time after which the request fails, measured from its submission.
    pub timeout: Option<Duration>,
}

impl Request {
    /// Continues a prompt once, with the cache and without log-probabilities.
    pub fn new(prompt: impl Into<Vec<u32>>, options: GenerateOptions) -> Self {
        Self::with_input(Input::Prompt(prompt.into()), options)
    }

    /// Continues a saved sequence once, without log-probabilities.
    pub fn resume(id: impl Into<String>, tokens: impl Into<Vec<u32>>, options: GenerateOptions) -> Self {
        Self::with_input(Input::Saved { id: id.into(), tokens: tokens.into() }, options)
    }

    fn with_input(input: Input, options: GenerateOptions) -> Self {
        Self {
            input,
            options,
            choices: 1,
            logprobs: None,
            prompt_logprobs: false,
            cache: true,
            save: false,
            timeout: None,
        }
    }

    /// Sets the number of continuations.
    #[must_use]
    pub fn with_choices(self, choices: usize) -> Self {
        Self { choices, ..self }
    }

    /// Returns log-probabilities of generated tokens, each with this many alternatives.
    #[must_use]
    pub fn with_logprobs(self, alternatives: usize) -> Self {
        Self { logprobs: Some(alternatives), ..self }
    }

    /// Returns log-probabilities of the prompt's tokens.
    #[must_use]
    pub fn with_prompt_logprobs(self) -> Self {
        Self { prompt_logprobs: true, ..self }
    }

    /// Neither reads nor fills the cache.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { cache: false, ..self }
    }

    /// Keeps each finished sequence under a name.
    #[must_use]
    pub fn with_save(self) -> Self {
        Self { save: true, ..self }
    }

    /// Sets the time limit.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        match &self.input {
            Input::Prompt(tokens) | Input::Saved { tokens, .. } => tokens,
        }
    }
}
