//! Counts and times of a generation.

use std::time::Duration;

/// Counts and times of a generation, from its start until now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Tokens to feed at the start: those of the prompt, and those that were pending.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub new_tokens: usize,
    /// From the call of `generate` to the first token. This includes encoding and reading the prompt.
    pub time_to_first_token: Option<Duration>,
    /// From the call of `generate` to the last token.
    pub time_to_last_token: Option<Duration>,
}

impl Statistics {
    pub(crate) fn count(&mut self, elapsed: Duration) {
        self.new_tokens += 1;
        self.time_to_first_token.get_or_insert(elapsed);
        self.time_to_last_token = Some(elapsed);
    }

    /// Returns the tokens per second after the first token; nothing before there are two.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        let seconds = self.time_to_last_token?.checked_sub(self.time_to_first_token?)?.as_secs_f64();
        (self.new_tokens > 1 && seconds > 0.0).then(|| (self.new_tokens - 1) as f64 / seconds)
    }

    /// Returns the prompt tokens per second until the first token; nothing before there is one.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        let seconds = self.time_to_first_token?.as_secs_f64();
        (seconds > 0.0).then(|| self.prompt_tokens as f64 / seconds)
    }
}
