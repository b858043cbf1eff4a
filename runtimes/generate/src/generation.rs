//! The decode loop: one sequence, driven with one model.

use crate::{Error, FinishReason, GenerateOptions, Piece, Prompt, SavedSequence, Sequence, Statistics, Tokenizer};
use densessm_proto::GraphKind;
use densessm_session::{Model, States, TokenBatch};
use std::{
    iter::FusedIterator,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Instant,
};

/// Maximum number of tokens that go through the parallel graph in one call. It limits the memory that a long prompt
/// takes.
pub const PREFILL_CHUNK: usize = 512;

/// A text while it is generated: an iterator over its pieces, the last of which says why it ended.
///
/// The pieces' texts together are the decoding of the generated tokens, up to a stop string. After an error the
/// iterator is at its end.
pub struct Generation<'a> {
    model: &'a mut dyn Model,
    states: States,
    sequence: Sequence,
    cancel: Option<Arc<AtomicBool>>,
    parallel: bool,
    recurrent: bool,
    over: bool,
    started: Instant,
    statistics: Statistics,
}

/// Generates text after a prompt. Nothing is fed to the model before the iterator's first item is requested.
///
/// A prompt goes through the parallel graph in chunks of [`PREFILL_CHUNK`] tokens, single tokens through the recurrent
/// one; a bundle with one graph only uses it for everything.
///
/// ```no_run
/// use densessm_generate::{Error, GenerationConfig, Prompt, Tokenizer, generate};
///
/// # fn example(model: &mut dyn densessm_session::Model, bundle: &std::path::Path) -> Result<(), Error> {
/// let tokenizer = Tokenizer::open(bundle)?;
/// let options = GenerationConfig::open(bundle)?.options().with_max_new_tokens(40);
/// for piece in generate(model, &tokenizer, Prompt::text("KING RICHARD:\n"), options)? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the prompt is empty or holds a token that the model does not know, an option is out of range, or the states
/// cannot be allocated.
pub fn generate<'a>(
    model: &'a mut dyn Model,
    tokenizer: &Tokenizer,
    prompt: Prompt,
    options: GenerateOptions,
) -> Result<Generation<'a>, Error> {
    let started = Instant::now();
    let sequence = Sequence::new(tokenizer, prompt, options)?;
    check(model, &sequence)?;
    let states = model.initial_states(1)?;
    Ok(Generation::new(model, states, sequence, started))
}

/// Continues a saved sequence, with a further prompt or without one, as if it had not been paused.
///
/// # Errors
/// As [`generate`]; also when the states are not those of one sequence.
pub fn resume<'a>(
    model: &'a mut dyn Model,
    tokenizer: &Tokenizer,
    saved: SavedSequence,
    prompt: Option<Prompt>,
    options: GenerateOptions,
) -> Result<Generation<'a>, Error> {
    let started = Instant::now();
    let sequence = Sequence::resume(tokenizer, saved.continuation()?, prompt, options)?;
    check(model, &sequence)?;
    Ok(Generation::new(model, saved.states, sequence, started))
}

/// Checks that the model knows every token of a prompt.
fn check(model: &dyn Model, sequence: &Sequence) -> Result<(), Error> {
    let vocabulary = model.bundle().architecture().vocab_size();
    match sequence.pending().into_iter().find(|&token| token as usize >= vocabulary) {
        Some(token) => Err(Error::Token { token, vocabulary }),
        None => Ok(()),
    }
}

impl<'a> Generation<'a> {
    fn new(model: &'a mut dyn Model, states: States, sequence: Sequence, started: Instant) -> Self {
        let has = |kind| model.bundle().manifest().graph(kind).is_some();
        Self {
            parallel: has(GraphKind::Parallel),
            recurrent: has(GraphKind::Recurrent),
            statistics: Statistics { prompt_tokens: sequence.pending().len(), ..Statistics::default() },
            model,
            states,
            sequence,
            cancel: None,
            over: false,
            started,
        }
    }

    /// Ends the generation when the flag is set, with what was generated until then. The flag is read before each call
    /// of the model, that is within one token or one chunk of the prompt.
    #[must_use]
    pub fn cancelled_by(self, flag: Arc<AtomicBool>) -> Self {
        Self { cancel: Some(flag), ..self }
    }

    /// Uses these graphs only: those that the model was loaded with, if they are not all that its bundle holds.
    #[must_use]
    pub fn with_graphs(self, graphs: &[GraphKind]) -> Self {
        let (parallel, recurrent) = (graphs.contains(&GraphKind::Parallel), graphs.contains(&GraphKind::Recurrent));
        Self { parallel, recurrent, ..self }
    }

    /// Returns counts and times until now.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Returns the sequence as it is now: whether the generation has ended, was paused by the caller, or failed.
    ///
    /// It counts every generated token, including those after a stop string and the end-of-sequence token.
    pub fn into_saved(self) -> SavedSequence {
        SavedSequence { pending: self.sequence.pending(), states: self.states }
    }

    /// Returns the text of all pieces to come, and why it ended.
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

    /// Feeds what is pending until there is a piece.
    fn next_piece(&mut self) -> Result<Piece, Error> {
        if let Some(finish) = self.sequence.finish_reason() {
            return Ok(Piece::end(finish));
        }
        loop {
            if self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Ok(self.sequence.end(FinishReason::Cancelled));
            }
            let tokens = self.sequence.next_tokens(if self.parallel { PREFILL_CHUNK } else { 1 });
            let count = tokens.len();
            let logits = if self.recurrent && count == 1 {
                self.model.step(tokens, &mut self.states)?
            } else {
                self.model.prefill(&TokenBatch::new(tokens, &[count])?, &mut self.states)?
            };
            if let Some(piece) = self.sequence.accept(count, logits.last(0, count))? {
                if piece.token.is_some() {
                    self.statistics.count(self.started.elapsed());
                }
                return Ok(piece);
            }
        }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let piece = self.next_piece();
        self.over = piece.as_ref().map_or(true, |piece| piece.finish.is_some());
        Some(piece)
    }
}

impl FusedIterator for Generation<'_> {}
