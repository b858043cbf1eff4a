//! The decode loop.
//!
//! The one design decision: a turn feeds all pending tokens and samples one, which is then the pending one. Reading
//! the prompt is the first turn. A turn that fails or is cancelled has moved only tokens that were consumed out of the
//! pending ones, so states and pending tokens always make up the sequence.

use crate::{
    Error, FinishReason, GenerateOptions, Progress, Prompt, Sampler, Statistics, TextPosition, TextStream, Tokenizer,
    stop::StopStrings,
};
use densessm_proto::GraphKind;
use densessm_session::{Model, States, TokenBatch};
use std::{
    iter::FusedIterator,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Instant,
};

/// At most so many tokens go through the parallel graph in one call; it bounds the memory that a long prompt takes.
pub const PREFILL_CHUNK: usize = 512;

/// What a turn of the loop adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token made; none if the generation ended without one (cancelled, or 0 tokens asked for).
    pub token: Option<u32>,
    /// Text that is now certain and not held back as the possible beginning of a stop string; often empty.
    pub text: String,
    /// Why the generation ended, with its last piece.
    pub finish: Option<FinishReason>,
}

/// A text being made: an iterator over its pieces, the last of which says why it ended.
///
/// The pieces' texts together are the decoding of the tokens made, up to a stop string. After an error it is over.
pub struct Generation<'a> {
    model: &'a mut dyn Model,
    states: States,
    pending: Vec<i64>,
    text: TextStream<'a>,
    sampler: Sampler,
    stop: StopStrings,
    eos: Vec<u32>,
    max_new_tokens: usize,
    cancel: Option<Arc<AtomicBool>>,
    parallel: bool,
    recurrent: bool,
    over: bool,
    started: Instant,
    statistics: Statistics,
}

/// Begins to generate. Nothing is fed to the model before the first piece is asked for.
///
/// A prompt goes through the parallel graph in chunks of [`PREFILL_CHUNK`] tokens, single tokens through the recurrent
/// one; a bundle with one graph only uses it for everything.
///
/// # Errors
/// When the prompt is empty or holds a token that the model does not know, an option is out of range, or the states
/// are not those of one sequence.
pub fn generate<'a>(
    model: &'a mut dyn Model,
    tokenizer: &'a Tokenizer,
    prompt: Prompt,
    options: GenerateOptions,
) -> Result<Generation<'a>, Error> {
    let started = Instant::now();
    let sampler = Sampler::new(options.sampling)?;
    let stop = StopStrings::new(options.stop)?;
    let (states, tokens, place) = prompt.open(tokenizer)?;
    let vocabulary = model.bundle().architecture().vocab_size();
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(Error::Token { token, vocabulary });
    }
    let has = |kind| match &options.graphs {
        Some(graphs) => graphs.contains(&kind),
        None => model.bundle().manifest().graph(kind).is_some(),
    };
    let (parallel, recurrent) = (has(GraphKind::Parallel), has(GraphKind::Recurrent));
    let states = match states {
        Some(states) => states,
        None => model.initial_states(1)?,
    };
    Ok(Generation {
        model,
        states,
        text: after(tokenizer, &tokens, place)?,
        statistics: Statistics { prompt_tokens: tokens.len(), ..Statistics::default() },
        pending: tokens.into_iter().map(i64::from).collect(),
        sampler,
        stop,
        eos: options.eos,
        max_new_tokens: options.max_new_tokens,
        cancel: options.cancel,
        parallel,
        recurrent,
        over: false,
        started,
    })
}

/// The stream of the text that comes after these tokens.
fn after<'a>(tokenizer: &'a Tokenizer, tokens: &[u32], place: TextPosition) -> Result<TextStream<'a>, Error> {
    let mut text = tokenizer.stream(place);
    for &token in tokens {
        text.push(token)?;
        text.take(text.settled());
    }
    text.finish();
    text.take(text.settled());
    Ok(text)
}

impl Generation<'_> {
    /// Counts and times until now.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The sequence as it is now: whether the generation is over, paused by the caller, or failed.
    ///
    /// It counts every token made, those behind a stop string and the end-of-sequence token included.
    pub fn into_progress(self) -> Progress {
        let pending = self.pending.iter().map(|&token| token as u32).collect();
        Progress { states: self.states, pending }
    }

    /// The text of all pieces to come, and why it ended.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn read_to_end(&mut self) -> Result<(String, Option<FinishReason>), Error> {
        let (mut text, mut finish) = (String::new(), None);
        for piece in self {
            let piece = piece?;
            text.push_str(&piece.text);
            finish = piece.finish;
        }
        Ok((text, finish))
    }

    fn turn(&mut self) -> Result<Piece, Error> {
        if self.max_new_tokens == 0 {
            let finish = if self.feed_all_but_last()? { FinishReason::Length } else { FinishReason::Cancelled };
            return Ok(self.last_piece(None, finish));
        }
        let Some(token) = self.next_token()? else { return Ok(self.last_piece(None, FinishReason::Cancelled)) };
        self.statistics.count(self.started.elapsed());
        if self.eos.contains(&token) {
            return Ok(self.last_piece(Some(token), FinishReason::EndOfSequence));
        }
        let changed = self.text.push(token)?;
        if let Some(at) = self.stop.find(self.text.text(), changed) {
            return Ok(Piece { token: Some(token), text: self.text.take(at), finish: Some(FinishReason::StopString) });
        }
        if self.statistics.new_tokens == self.max_new_tokens {
            return Ok(self.last_piece(Some(token), FinishReason::Length));
        }
        let settled = self.text.settled();
        let held_back = self.stop.held_back(&self.text.text()[..settled]);
        Ok(Piece { token: Some(token), text: self.text.take(settled - held_back), finish: None })
    }

    /// Everything that is still held back.
    fn last_piece(&mut self, token: Option<u32>, finish: FinishReason) -> Piece {
        let changed = self.text.finish();
        let (end, finish) = match self.stop.find(self.text.text(), changed) {
            Some(at) => (at, FinishReason::StopString),
            None => (self.text.settled(), finish),
        };
        Piece { token, text: self.text.take(end), finish: Some(finish) }
    }

    fn cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Feeds what is pending and samples; nothing if cancelled.
    fn next_token(&mut self) -> Result<Option<u32>, Error> {
        while !self.cancelled() {
            let count = self.call_size(self.pending.len());
            let last = count == self.pending.len();
            if let Some(token) = self.feed(count, last)? {
                self.pending.push(i64::from(token));
                return Ok(Some(token));
            }
        }
        Ok(None)
    }

    /// Feeds what is pending but for the last token; false if cancelled.
    fn feed_all_but_last(&mut self) -> Result<bool, Error> {
        while self.pending.len() > 1 {
            if self.cancelled() {
                return Ok(false);
            }
            self.feed(self.call_size(self.pending.len() - 1), false)?;
        }
        Ok(true)
    }

    /// How many of the next `count` tokens go into one call.
    fn call_size(&self, count: usize) -> usize {
        if self.parallel { count.min(PREFILL_CHUNK) } else { 1 }
    }

    /// Feeds the first `count` pending tokens in one call and samples if asked to.
    fn feed(&mut self, count: usize, sample: bool) -> Result<Option<u32>, Error> {
        let tokens = &self.pending[..count];
        let logits = if self.recurrent && count == 1 {
            self.model.step(tokens, &mut self.states)?
        } else {
            self.model.prefill(&TokenBatch::new(tokens, &[count])?, &mut self.states)?
        };
        let position = self.states.lengths()[0].unsigned_abs();
        let sampled = sample.then(|| self.sampler.sample(logits.last(0, count), position)).transpose();
        self.pending.drain(..count);
        sampled
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let piece = self.turn();
        self.over = piece.as_ref().map_or(true, |piece| piece.finish.is_some());
        Some(piece)
    }
}

impl FusedIterator for Generation<'_> {}
