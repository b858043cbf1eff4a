//! A request inside the scheduler: where its events go, and its sequences in the batch.

use crate::{Event, Failure, Finish, GeneratedPiece, Input, Metrics, Request, Sink, Started, TokenLogprobs};
use densessm_generate::{FinishReason, Piece, Sequence};
use std::time::Instant;

/// A request that was accepted.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) request: Request,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) submitted: Instant,
    /// Choices that have not ended.
    pub(crate) open: usize,
}

impl Job {
    pub(crate) fn new(id: u64, request: Request, sink: Box<dyn Sink>) -> Self {
        Self { id, open: request.choices, request, sink, submitted: Instant::now() }
    }

    /// Why it has to leave now, if it has to: nobody listens, or its time is over.
    pub(crate) fn has_to_leave(&self) -> Option<Leave> {
        if self.sink.is_closed() {
            return Some(Leave::Cancelled);
        }
        let over = self.request.timeout.is_some_and(|timeout| self.submitted.elapsed() >= timeout);
        over.then_some(Leave::Failed(Failure::TimedOut))
    }

    /// Whether states of its prompt may be kept and continued.
    pub(crate) fn cacheable(&self) -> bool {
        self.request.cache && !self.request.prompt_logprobs && matches!(self.request.input, Input::Prompt(_))
    }

    pub(crate) fn start(&mut self, prompt_tokens: usize, cached_tokens: usize, metrics: &Metrics) {
        metrics.queue_time.observe(self.submitted.elapsed());
        metrics.prompt_tokens.add(prompt_tokens as u64);
        metrics.cached_tokens.add(cached_tokens as u64);
        self.sink.send(Event::Started(Started { prompt_tokens, cached_tokens }));
    }

    pub(crate) fn fail(&mut self, failure: Failure, metrics: &Metrics) {
        let counter = if failure == Failure::TimedOut { &metrics.timed_out } else { &metrics.failed };
        counter.add(1);
        self.sink.send(Event::Failed(failure));
    }

    /// Ends one of its choices.
    pub(crate) fn finish(&mut self, finish: Finish, metrics: &Metrics) {
        self.open = self.open.saturating_sub(1);
        match finish.reason {
            FinishReason::Length => metrics.reached_length.add(1),
            _ => metrics.stopped.add(1),
        }
        self.sink.send(Event::Finished(finish));
    }
}

/// Why a request leaves before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Cancelled,
    Failed(Failure),
}

/// One choice of a request: a row of the batch, or a prompt that is read.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) job: u64,
    pub(crate) choice: usize,
    pub(crate) sequence: Sequence,
    /// What is fed: the prompt, then the generated tokens.
    tokens: Vec<u32>,
    prompt: usize,
    /// Number of tokens that the states had consumed before those.
    base: u64,
    last_token: Option<Instant>,
}

impl Row {
    /// The first choice of a request, before anything was fed.
    pub(crate) fn new(job: u64, sequence: Sequence) -> Self {
        let tokens = sequence.pending();
        let (base, prompt) = (sequence.consumed(), tokens.len());
        Self { job, choice: 0, sequence, tokens, prompt, base, last_token: None }
    }

    /// The same for another choice of the request.
    pub(crate) fn for_choice(&self, choice: usize) -> Self {
        Self { choice, ..self.clone() }
    }

    /// Number of tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt
    }

    /// Number of tokens fed so far.
    pub(crate) fn fed(&self) -> usize {
        usize::try_from(self.sequence.consumed() - self.base).unwrap_or(usize::MAX)
    }

    /// The tokens fed so far.
    pub(crate) fn consumed_tokens(&self) -> &[u32] {
        self.tokens.get(..self.fed()).unwrap_or(&self.tokens)
    }

    /// Whether every token of the prompt but the last was fed, and there was one before it: the point at which a state
    /// of the prompt is kept.
    pub(crate) fn at_end_of_prompt(&self) -> bool {
        self.fed() + 1 == self.prompt && self.fed() > 0
    }

    /// The tokens of the prompt whose scores follow from feeding `count` more tokens, with the place of each among the
    /// fed ones.
    pub(crate) fn predicted(&self, count: usize) -> impl Iterator<Item = (usize, u32)> + '_ {
        let fed = self.fed();
        (0..count).map_while(move |place| {
            let next = fed + place + 1;
            (next < self.prompt).then(|| (place, self.tokens[next]))
        })
    }

    /// Notes a piece and passes it on.
    pub(crate) fn deliver(&mut self, job: &mut Job, piece: &Piece, scores: &[f32], metrics: &Metrics) {
        let mut logprobs = None;
        if let Some(token) = piece.token {
            self.tokens.push(token);
            metrics.generated_tokens.add(1);
            let now = Instant::now();
            match self.last_token.replace(now) {
                None => metrics.time_to_first_token.observe(now - job.submitted),
                Some(last) => metrics.time_per_output_token.observe(now - last),
            }
            logprobs = job.request.logprobs.map(|count| TokenLogprobs::new(scores, token, count));
        }
        if piece.token.is_some() || !piece.text.is_empty() {
            let (token, text) = (piece.token, piece.text.clone());
            job.sink.send(Event::Piece(GeneratedPiece { choice: self.choice, token, text, logprobs }));
        }
    }
}
