//! A text as tokens, together with the bytes that each of them stands for.

use super::Error;
use crate::{TextPosition, Tokenizer};

/// A tokenized text.
///
/// Every byte of the text belongs to exactly one token: a token covers the bytes from the end of the one before it to
/// its own end, so that spaces belong to the token that follows them. A beginning-of-sequence token covers none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedText {
    tokens: Vec<i64>,
    /// The end of each token in bytes of the text, if known; as many as there are tokens, and rising.
    ends: Option<Vec<usize>>,
}

impl TokenizedText {
    /// Tokenizes a text that stands at the start of a sequence.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self, Error> {
        let encoded = tokenizer.encode_with_ends(text, TextPosition::Start)?;
        let tokens = encoded.iter().map(|&(id, _)| i64::from(id)).collect();
        let mut ends: Vec<usize> = encoded.iter().map(|&(_, end)| end).collect();
        // What a tokenizer drops at the end belongs to the last token.
        ends.last_mut().into_iter().for_each(|end| *end = text.len());
        Ok(Self { tokens, ends: Some(ends) })
    }

    /// Returns the tokens of an unknown text, which have no number of bytes.
    pub fn from_tokens(tokens: Vec<i64>) -> Self {
        Self { tokens, ends: None }
    }

    /// Drops all tokens after the first `tokens`, together with the bytes that they cover.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        self.ends.iter_mut().for_each(|ends| ends.truncate(tokens));
    }

    /// Returns the tokens.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// Returns the number of bytes that a token covers, if known.
    ///
    /// # Panics
    /// When there is no such token.
    pub fn bytes(&self, token: usize) -> Option<usize> {
        let ends = self.ends.as_ref()?;
        let start = token.checked_sub(1).map_or(0, |before| ends[before]);
        Some(ends[token] - start)
    }
}
