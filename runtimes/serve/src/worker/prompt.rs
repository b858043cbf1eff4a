//! The way of a request into the batch: from the queue to a state, and through its prompt.

use super::{Reading, Worker, invalid, runtime};
use crate::{
    Event, Failure, Input, TokenLogprobs,
    job::{Leave, Row},
};
use densessm_generate::{Prompt, Sequence};
use densessm_session::{States, TokenBatch};

impl Worker {
    /// Admits waiting requests in the order of their arrival, as long as no prompt is being read and all choices of the
    /// next request have slots.
    pub(super) fn admit(&mut self) {
        while self.reading.is_none() {
            let free = self.options.slots - self.rows.len();
            let Some(job) = self.waiting.pop_front_if(|job| job.request.choices <= free) else { return };
            // In this order, so that an admitted request is always counted.
            self.metrics.running.add(job.request.choices as u64);
            self.metrics.waiting.subtract(1);
            let id = job.id;
            self.jobs.insert(id, job);
            if let Err(failure) = self.begin(id) {
                self.leave(id, Leave::Failed(failure));
            }
        }
    }

    /// Starts a request from zeros, from a cached state or from a saved sequence.
    fn begin(&mut self, id: u64) -> Result<(), Failure> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let options = job.request.options.clone();
        let (mut row, states, cached, branch) = match &job.request.input {
            Input::Prompt(tokens) => {
                let prompt = Prompt::tokens(tokens.clone());
                let row = Row::new(id, Sequence::new(&self.tokenizer, prompt, options).map_err(invalid)?);
                // The last token is always fed: the scores that follow it are not part of a state.
                let reusable = if job.cacheable() { &tokens[..tokens.len() - 1] } else { &[] };
                let found = self.cache.find(&mut *self.model, reusable);
                match found.states {
                    Some(states) => (row, states, found.consumed, found.branch),
                    None => (row, self.model.initial_states(1).map_err(runtime)?, 0, found.branch),
                }
            }
            Input::Saved { id: name, tokens } => {
                let saved = self.saved.get(name).ok_or_else(|| Failure::UnknownState(name.clone()))?;
                let continuation = saved.continuation().map_err(invalid)?;
                let states = saved.states.fork().map_err(runtime)?;
                let prompt = (!tokens.is_empty()).then(|| Prompt::tokens(tokens.clone()));
                let sequence = Sequence::resume(&self.tokenizer, continuation, prompt, options).map_err(invalid)?;
                (Row::new(id, sequence), states, 0, None)
            }
        };
        job.start(row.prompt_tokens(), cached, &self.metrics);
        if cached > 0 {
            row.sequence.accept(cached, &[]).map_err(runtime)?;
        }
        let by_steps = !self.graphs.parallel || (job.request.prompt_logprobs && !self.graphs.all_logits);
        self.go_on(row, states, branch, by_steps)
    }

    /// What comes next for a row that is not in the batch: its end, the batch, or a further piece of its prompt.
    fn go_on(&mut self, row: Row, states: States, branch: Option<usize>, by_steps: bool) -> Result<(), Failure> {
        if let Some(reason) = row.sequence.finish_reason() {
            return self.finish_unread(row, &states, reason);
        }
        if by_steps || row.sequence.next_tokens(2).len() == 1 {
            return self.join(row, &states);
        }
        self.reading = Some(Reading { row, states, branch });
        Ok(())
    }

    /// Puts every choice of a request into the batch.
    fn join(&mut self, row: Row, states: &States) -> Result<(), Failure> {
        let Some(job) = self.jobs.get(&row.job) else { return Ok(()) };
        let (choices, seed) = (job.request.choices, job.request.options.sampling.seed);
        self.batch.join_rows(states, &vec![0; choices]).map_err(runtime)?;
        for choice in 0..choices {
            let mut row = row.for_choice(choice);
            row.sequence.reseed(seed.wrapping_add(choice as u64));
            self.rows.push(row);
        }
        Ok(())
    }

    /// Reads one piece of the prompt that is being read.
    pub(super) fn read_piece(&mut self) {
        let Some(reading) = self.reading.take() else { return };
        let id = reading.row.job;
        if let Err(failure) = self.read(reading) {
            self.leave(id, Leave::Failed(failure));
        }
    }

    fn read(&mut self, Reading { mut row, mut states, branch }: Reading) -> Result<(), Failure> {
        let Some(job) = self.jobs.get_mut(&row.job) else { return Ok(()) };
        let due = row.sequence.next_tokens(usize::MAX).len();
        // A step of the batch feeds the last token, from which the first one is generated.
        let left = if job.request.options.max_new_tokens == 0 { due } else { due - 1 };
        // Pieces end at multiples of their size, wherever a cached state ended, and where a prompt branches. After a cached
        // state, a piece of less than a quarter of the size is not worth a call of its own.
        let (size, begun) = (self.options.piece, row.fed() % self.options.piece);
        let aligned = if size - begun < size / 4 { 2 * size - begun } else { size - begun };
        let to_branch = branch.filter(|&at| at > row.fed()).map_or(usize::MAX, |at| at - row.fed());
        let tokens = row.sequence.next_tokens(left.min(aligned).min(to_branch)).to_vec();
        let count = tokens.len();
        let logits = if count == 1 && self.graphs.recurrent {
            self.model.step(&tokens, &mut states)
        } else {
            TokenBatch::new(&tokens, &[count]).and_then(|tokens| self.model.prefill(&tokens, &mut states))
        };
        let logits = logits.map_err(runtime)?;
        if job.request.prompt_logprobs {
            let alternatives = job.request.logprobs.unwrap_or(0);
            let told = |(place, token)| TokenLogprobs::new(logits.at(0, place), token, alternatives);
            job.sink.send(Event::Prompt(row.predicted(count).map(told).collect()));
        }
        let cacheable = job.cacheable();
        row.sequence.accept(count, logits.last(0, count)).map_err(runtime)?;
        if cacheable && (row.at_end_of_prompt() || branch == Some(row.fed())) {
            self.cache.insert(row.consumed_tokens(), || states.fork());
        }
        self.go_on(row, states, branch, false)
    }
}
