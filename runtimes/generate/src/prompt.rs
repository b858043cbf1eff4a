//! The input of a sequence: a text or tokens.

use crate::{Error, TextPosition, Tokenizer};

/// A text or tokens that a sequence reads before it generates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt(Input);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// A text of at least one token. At the start of a sequence the tokenizer adds the beginning-of-sequence token and
    /// its leading space, where it has them. After other tokens it adds neither, so that the text of a sequence is the
    /// texts of its prompts, one after the other.
    pub fn text(text: impl Into<String>) -> Self {
        Self(Input::Text(text.into()))
    }

    /// Token ids as they are: no beginning-of-sequence token is added.
    pub fn tokens(tokens: impl Into<Vec<u32>>) -> Self {
        Self(Input::Tokens(tokens.into()))
    }

    /// The prompt's tokens at that position of a sequence.
    pub(crate) fn encode(self, tokenizer: &Tokenizer, position: TextPosition) -> Result<Vec<u32>, Error> {
        match self.0 {
            Input::Tokens(tokens) => Ok(tokens),
            Input::Text(text) => {
                let tokens = tokenizer.encode(&text, position)?;
                let added = if position == TextPosition::Start { tokenizer.beginning().len() } else { 0 };
                if tokens.len() == added { Err(Error::EmptyPrompt) } else { Ok(tokens) }
            }
        }
    }
}
