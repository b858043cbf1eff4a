//! What a caller may ask of a generation, and why one ends.

use crate::Sampling;
use densessm_proto::GraphKind;
use std::sync::{Arc, atomic::AtomicBool};

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most so many tokens are made. With 0 the prompt is read and nothing else.
    pub max_new_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the sequence, as [`GenerationConfig`](crate::GenerationConfig) knows them; they have no text.
    pub eos: Vec<u32>,
    /// Texts that end the generation; they are not part of what it gives.
    pub stop: Vec<String>,
    /// Ends the generation when set, with what was made: looked at before each call of the model, so within one token
    /// or one chunk of the prompt.
    pub cancel: Option<Arc<AtomicBool>>,
    /// The graphs the model was loaded with, if not all that its bundle holds.
    pub graphs: Option<Vec<GraphKind>>,
}

impl Default for GenerateOptions {
    /// Greedy, 256 tokens, and nothing else that ends it.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::GREEDY,
            eos: Vec::new(),
            stop: Vec::new(),
            cancel: None,
            graphs: None,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model made an end-of-sequence token.
    EndOfSequence,
    /// A stop string came.
    StopString,
    /// As many tokens as asked for were made.
    Length,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// Its name in reports.
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
