//! One sequence of tokens and its text, without the model that continues it.
//!
//! A sequence is its token ids. Its states have consumed all of them but the last few, the *pending* ones: the prompt's
//! tokens are the first to be pending, and each generated token is the next. So starting a sequence, continuing it
//! after a pause and continuing it in another process are the same, and the draw of a token depends only on the seed,
//! the token's position and its scores.

use crate::{
    Error, FinishReason, GenerateOptions, Prompt, Sampler, TextPosition, TextStream, Tokenizer, stop::StopStrings,
};

/// What a step of a sequence adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// The token that was generated; none if the sequence ended without one (it was cancelled, or its maximum was 0).
    pub token: Option<u32>,
    /// Text that is final and cannot be the beginning of a stop string; often empty.
    pub text: String,
    /// Why the sequence ended, with its last piece.
    pub finish: Option<FinishReason>,
}

impl Piece {
    pub(crate) fn end(finish: FinishReason) -> Self {
        Self { token: None, text: String::new(), finish: Some(finish) }
    }
}

/// The part of a sequence that came before: what a [`Sequence`] has to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Continuation {
    /// How many tokens the states have consumed.
    pub consumed: u64,
    /// Which tokens the states have yet to consume, in order.
    pub pending: Vec<u32>,
}

impl Continuation {
    /// A sequence whose states have consumed this many tokens and have yet to consume these.
    pub fn new(consumed: u64, pending: impl Into<Vec<u32>>) -> Self {
        Self { consumed, pending: pending.into() }
    }
}

/// One sequence: it says which tokens to feed next and takes the logits that follow them.
///
/// It owns neither a model nor states, so one loop can drive any number of sequences with any number of models, in any
/// batches. Whoever drives it feeds [`Sequence::next_tokens`] to a model and hands the logits of the last of them to
/// [`Sequence::accept`]:
///
/// ```no_run
/// use densessm_generate::{Error, GenerateOptions, Prompt, Sequence, Tokenizer};
/// use densessm_session::{Model, TokenBatch};
///
/// # fn example(model: &mut dyn Model, tokenizer: &Tokenizer) -> Result<(), Error> {
/// let mut sequence = Sequence::new(tokenizer, Prompt::text("KING RICHARD:\n"), GenerateOptions::default())?;
/// let mut states = model.initial_states(1)?;
/// while sequence.finish_reason().is_none() {
///     let tokens = sequence.next_tokens(512);
///     let count = tokens.len();
///     let logits = model.prefill(&TokenBatch::new(tokens, &[count])?, &mut states)?;
///     if let Some(piece) = sequence.accept(count, logits.last(0, count))? {
///         print!("{}", piece.text);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`generate`](crate::generate) is this loop for one sequence. In a batch, sequences that have one pending token each
/// make up a [`step`](densessm_session::Model::step), row by row; a new one reads its prompt in chunks with states of
/// its own, which then [join](densessm_session::States::join) the batch. Several continuations of one prompt are
/// [clones](Clone) of its sequence with other [seeds](Sequence::reseed) that accept the same logits.
#[derive(Clone, Debug)]
pub struct Sequence {
    text: TextStream,
    consumed: u64,
    pending: Vec<i64>,
    sampler: Sampler,
    stop: StopStrings,
    eos: Vec<u32>,
    max_new_tokens: usize,
    new_tokens: usize,
    finish: Option<FinishReason>,
}

/// A server moves sequences between threads.
const _: () = {
    const fn is_send<T: Send + Sync>() {}
    is_send::<Sequence>();
};

impl Sequence {
    /// Starts a sequence with a prompt.
    ///
    /// # Errors
    /// When the prompt is empty or an option is out of range.
    pub fn new(tokenizer: &Tokenizer, prompt: Prompt, options: GenerateOptions) -> Result<Self, Error> {
        Self::resume(tokenizer, Continuation::default(), Some(prompt), options)
    }

    /// Continues a sequence, with a further prompt or without one.
    ///
    /// # Errors
    /// When there is no token to feed, or an option is out of range.
    pub fn resume(
        tokenizer: &Tokenizer,
        continuation: Continuation,
        prompt: Option<Prompt>,
        options: GenerateOptions,
    ) -> Result<Self, Error> {
        let sampler = Sampler::new(options.sampling)?;
        let stop = StopStrings::new(options.stop)?;
        let Continuation { consumed, pending: mut tokens } = continuation;
        let position = if consumed > 0 || !tokens.is_empty() { TextPosition::After } else { TextPosition::Start };
        if let Some(prompt) = prompt {
            tokens.extend(prompt.encode(tokenizer, position)?);
        }
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut sequence = Self {
            text: after(tokenizer, &tokens, position)?,
            consumed,
            pending: tokens.into_iter().map(i64::from).collect(),
            sampler,
            stop,
            eos: options.eos,
            max_new_tokens: options.max_new_tokens,
            new_tokens: 0,
            finish: None,
        };
        if sequence.due() == 0 {
            sequence.finish = Some(FinishReason::Length);
        }
        Ok(sequence)
    }

    /// Returns the tokens to feed next, at most `limit` of them. There are none once the sequence has ended.
    pub fn next_tokens(&self, limit: usize) -> &[i64] {
        &self.pending[..self.due().min(limit)]
    }

    /// Takes the scores `[vocabulary]` that follow the first `count` pending tokens, which the model has consumed.
    ///
    /// Returns nothing as long as there are more tokens to feed: the scores are then not looked at. Otherwise a token
    /// is drawn from them.
    ///
    /// # Errors
    /// When `count` is 0 or more than there were tokens to feed; nothing has changed then. When no token can be drawn
    /// from the scores or the tokenizer cannot spell it: the tokens count as consumed.
    pub fn accept(&mut self, count: usize, scores: &[f32]) -> Result<Option<Piece>, Error> {
        let due = self.due();
        if count == 0 || count > due {
            return Err(Error::Fed { due, count });
        }
        self.pending.drain(..count);
        self.consumed += count as u64;
        if count < due {
            return Ok(None);
        }
        if self.max_new_tokens == 0 {
            return Ok(Some(self.end(FinishReason::Length)));
        }
        let token = self.sampler.sample(scores, self.consumed)?;
        self.pending.push(i64::from(token));
        self.new_tokens += 1;
        self.push(token).map(Some)
    }

    /// Ends the sequence for a reason of the caller's, and returns the text that was held back. A sequence that has
    /// ended keeps its reason.
    pub fn end(&mut self, reason: FinishReason) -> Piece {
        if let Some(finish) = self.finish {
            return Piece::end(finish);
        }
        let changed = self.text.finish();
        let (text, finish) = match self.stop.find(self.text.text(), changed) {
            Some(at) => (at, FinishReason::StopString),
            None => (self.text.settled(), reason),
        };
        self.finish = Some(finish);
        Piece { token: None, text: self.text.take(text), finish: self.finish }
    }

    /// Returns why the sequence ended, if it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Returns the tokens that the model has not consumed, in order. After the end that is at least the last token.
    pub fn pending(&self) -> Vec<u32> {
        self.pending.iter().map(|&token| token as u32).collect()
    }

    /// Returns how many tokens the model has consumed, those before a [continuation](Sequence::resume) included.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Returns how many tokens were generated. It counts an end-of-sequence token, and tokens after a stop string.
    pub fn new_tokens(&self) -> usize {
        self.new_tokens
    }

    /// Draws the next tokens with another seed.
    pub fn reseed(&mut self, seed: u64) {
        self.sampler.reseed(seed);
    }

    /// How many pending tokens are to be fed: with 0 tokens to generate, all but the last.
    fn due(&self) -> usize {
        match (self.finish, self.max_new_tokens) {
            (Some(_), _) => 0,
            (None, 0) => self.pending.len().saturating_sub(1),
            (None, _) => self.pending.len(),
        }
    }

    /// Adds a generated token to the text.
    fn push(&mut self, token: u32) -> Result<Piece, Error> {
        if self.eos.contains(&token) {
            return Ok(Piece { token: Some(token), ..self.end(FinishReason::EndOfSequence) });
        }
        let changed = self.text.push(token)?;
        if let Some(at) = self.stop.find(self.text.text(), changed) {
            self.finish = Some(FinishReason::StopString);
            return Ok(Piece { token: Some(token), text: self.text.take(at), finish: self.finish });
        }
        if self.new_tokens == self.max_new_tokens {
            return Ok(Piece { token: Some(token), ..self.end(FinishReason::Length) });
        }
        let settled = self.text.settled();
        let held_back = self.stop.held_back(&self.text.text()[..settled]);
        Ok(Piece { token: Some(token), text: self.text.take(settled - held_back), finish: None })
    }
}

/// The stream of the text that comes after these tokens.
fn after(tokenizer: &Tokenizer, tokens: &[u32], position: TextPosition) -> Result<TextStream, Error> {
    let mut text = tokenizer.stream(position);
    for &token in tokens {
        text.push(token)?;
        text.take(text.settled());
    }
    text.finish();
    text.take(text.settled());
    Ok(text)
}
