//! What a generation starts from: a text or tokens, at the start of a sequence or after one that was paused.

use crate::{Error, Progress, TextPosition, Tokenizer};
use densessm_session::States;

/// What to go on from.
pub struct Prompt {
    input: Input,
    progress: Option<Progress>,
}

enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Nothing,
}

impl Prompt {
    /// A text of at least one token.
    pub fn text(text: impl Into<String>) -> Self {
        Self { input: Input::Text(text.into()), progress: None }
    }

    /// Token ids, taken as they are: no beginning-of-sequence token is added.
    pub fn tokens(tokens: impl Into<Vec<u32>>) -> Self {
        Self { input: Input::Tokens(tokens.into()), progress: None }
    }

    /// Nothing new: go on where the sequence was paused.
    pub fn resume(progress: Progress) -> Self {
        Self { input: Input::Nothing, progress: Some(progress) }
    }

    /// The same input after a sequence that was paused. A text then gets no beginning-of-sequence token and no leading
    /// space of the tokenizer's: the sequence's text is that of its parts, one after the other.
    #[must_use]
    pub fn after(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// The states to go on from, the tokens to feed, and where the first of them stands.
    pub(crate) fn open(self, tokenizer: &Tokenizer) -> Result<(Option<States>, Vec<u32>, TextPosition), Error> {
        let (states, mut tokens) = match self.progress {
            Some(Progress { states, pending }) => (Some(states), pending),
            None => (None, Vec::new()),
        };
        if let Some(states) = &states
            && states.batch() != 1
        {
            return Err(Error::Batch(states.batch()));
        }
        let consumed = states.as_ref().is_some_and(|states| states.lengths() != [0]);
        let place = if consumed || !tokens.is_empty() { TextPosition::After } else { TextPosition::Start };
        let new = match self.input {
            Input::Text(text) => {
                let new = tokenizer.encode(&text, place)?;
                let beginning = if place == TextPosition::Start { tokenizer.beginning().len() } else { 0 };
                if new.len() == beginning {
                    return Err(Error::EmptyPrompt);
                }
                new
            }
            Input::Tokens(new) => new,
            Input::Nothing => Vec::new(),
        };
        tokens.extend(new);
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Ok((states, tokens, place))
    }
}
