//! The thread of the model: admits requests, reads their prompts and steps the batch.
//!
//! One round is: take the messages that have arrived, let go of the requests that have to leave, admit those that wait
//! while there are slots, read one piece of one prompt, step the batch. So a running sequence waits for one piece at
//! most between two of its tokens.

mod end;
mod prompt;

use crate::{
    Event, Failure, Log, Metrics, SavedInfo, SchedulerOptions, TokenLogprobs,
    cache::Cache,
    job::{Job, Leave, Row},
    saved::SavedSequences,
};
use densessm_generate::{SavedSequence, Tokenizer};
use densessm_proto::{GraphKind, LogitsMode};
use densessm_session::{Bundle, Model, Snapshot, States, TokenBatch, inputs::check_tokens};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError},
    },
    time::{Duration, Instant},
};

/// What the handle tells the thread.
pub(crate) enum Message {
    Submit(Box<Job>),
    Load(Box<Snapshot>, Sender<Result<SavedInfo, Failure>>),
    Fetch(String, Sender<Result<Snapshot, Failure>>),
    Forget(String, Sender<Result<(), Failure>>),
    /// End, and give what runs this much time.
    Drain(Duration),
}

/// What the graphs of a bundle can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Graphs {
    parallel: bool,
    recurrent: bool,
    all_logits: bool,
}

impl Graphs {
    pub(crate) fn of(bundle: &Bundle) -> Self {
        let has = |kind| bundle.manifest().graph(kind).is_some();
        let parallel = has(GraphKind::Parallel);
        let all_logits = parallel && bundle.manifest().logits == LogitsMode::All;
        Self { parallel, recurrent: has(GraphKind::Recurrent), all_logits }
    }
}

/// A prompt between its first and its last piece.
pub(crate) struct Reading {
    row: Row,
    states: States,
    /// The number of fed tokens at which the prompt leaves the path of an earlier one.
    branch: Option<usize>,
}

pub(crate) struct Worker {
    pub(crate) model: Box<dyn Model>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) options: SchedulerOptions,
    pub(crate) graphs: Graphs,
    pub(crate) receiver: Receiver<Message>,
    pub(crate) cache: Cache,
    pub(crate) saved: SavedSequences,
    /// The states of `rows`, row by row.
    pub(crate) batch: States,
    pub(crate) rows: Vec<Row>,
    /// The requests of the rows and of the prompt that is read.
    pub(crate) jobs: HashMap<u64, Job>,
    pub(crate) waiting: VecDeque<Job>,
    pub(crate) reading: Option<Reading>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
    /// When draining ends.
    pub(crate) deadline: Option<Instant>,
    /// Whether every handle is gone.
    pub(crate) closed: bool,
}

impl Worker {
    pub(crate) fn run(mut self) {
        while self.receive() {
            self.sweep();
            self.admit();
            self.read_piece();
            self.step();
            self.publish();
        }
        self.publish();
    }

    fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.reading.is_none() && self.waiting.is_empty()
    }

    /// Takes the messages that have arrived, and waits for one if there is nothing to do. Returns whether to go on.
    fn receive(&mut self) -> bool {
        loop {
            if !self.is_idle() {
                match self.receiver.try_recv() {
                    Ok(message) => self.handle(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.closed = true;
                        break;
                    }
                }
            } else if self.closed || self.deadline.is_some() {
                return false;
            } else {
                match self.receiver.recv() {
                    Ok(message) => self.handle(message),
                    Err(_) => return false,
                }
            }
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.leave_all(&Failure::Stopping);
            return false;
        }
        true
    }

    fn handle(&mut self, message: Message) {
        // A reply that nobody waits for is lost.
        match message {
            Message::Submit(job) => self.waiting.push_back(*job),
            Message::Load(snapshot, reply) => drop(reply.send(self.load(&snapshot))),
            Message::Fetch(id, reply) => {
                let saved = self.saved.get(&id).ok_or_else(|| Failure::UnknownState(id.clone()));
                drop(reply.send(saved.and_then(|saved| saved.snapshot().map_err(runtime))));
            }
            Message::Forget(id, reply) => {
                let known = self.saved.remove(&id);
                drop(reply.send(if known { Ok(()) } else { Err(Failure::UnknownState(id)) }));
            }
            Message::Drain(time) => self.deadline = Some(Instant::now() + time),
        }
    }

    fn load(&mut self, snapshot: &Snapshot) -> Result<SavedInfo, Failure> {
        let invalid = |error: &dyn std::fmt::Display| Failure::Invalid(error.to_string());
        let saved = SavedSequence::restore(&mut *self.model, snapshot).map_err(|error| invalid(&error))?;
        saved.continuation().map_err(|error| invalid(&error))?;
        let pending: Vec<i64> = saved.pending.iter().map(|&token| i64::from(token)).collect();
        check_tokens(self.model.bundle(), &pending).map_err(|error| invalid(&error))?;
        if pending.len() > self.options.max_prompt_tokens {
            let problem = format!("expected at most {}, got {}", self.options.max_prompt_tokens, pending.len());
            return Err(Failure::Invalid(format!("pending tokens: {problem}")));
        }
        self.saved.insert(saved).ok_or_else(|| Failure::Invalid("states: this server keeps none by name".to_owned()))
    }

    /// Lets go of the requests that nobody listens to or whose time is over.
    fn sweep(&mut self) {
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for mut job in std::mem::take(&mut self.waiting) {
            match job.has_to_leave() {
                None => kept.push_back(job),
                Some(leave) => {
                    self.metrics.waiting.subtract(1);
                    self.dismiss(&mut job, leave);
                }
            }
        }
        self.waiting = kept;
        let leaving: Vec<(u64, Leave)> =
            self.jobs.values().filter_map(|job| Some((job.id, job.has_to_leave()?))).collect();
        for (id, leave) in leaving {
            self.leave(id, leave);
        }
    }

    /// Feeds every row of the batch one token.
    fn step(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        self.keep_ends_of_prompts();
        let Self { model, batch, rows, jobs, metrics, graphs, .. } = self;
        let tokens: Vec<i64> = rows.iter().flat_map(|row| row.sequence.next_tokens(1)).copied().collect();
        let logits = if graphs.recurrent {
            model.step(&tokens, batch)
        } else {
            TokenBatch::new(&tokens, &vec![1; tokens.len()]).and_then(|tokens| model.prefill(&tokens, batch))
        };
        let logits = match logits {
            Ok(logits) => logits,
            Err(error) => {
                let failure = runtime(error);
                return self.reset(&failure);
            }
        };
        metrics.steps.add(1);
        let (mut ended, mut failed) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter_mut().enumerate() {
            let Some(job) = jobs.get_mut(&row.job) else { continue };
            let scores = logits.at(index, 0);
            if job.request.prompt_logprobs && row.choice == 0 {
                let alternatives = job.request.logprobs.unwrap_or(0);
                let told = |(_, token)| TokenLogprobs::new(scores, token, alternatives);
                let told: Vec<TokenLogprobs> = row.predicted(1).map(told).collect();
                if !told.is_empty() {
                    job.sink.send(Event::Prompt(told));
                }
            }
            match row.sequence.accept(1, scores) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    row.deliver(job, &piece, scores, metrics);
                    ended.extend(piece.finish.map(|reason| (index, reason)));
                }
                Err(error) => failed.push((row.job, runtime(error))),
            }
        }
        // In descending order, so that the row that replaces a removed one has been handled already.
        for (index, reason) in ended.into_iter().rev() {
            if let Err(failure) = self.finish(index, reason) {
                return self.reset(&failure);
            }
        }
        for (id, failure) in failed {
            self.leave(id, Leave::Failed(failure));
        }
    }

    /// Keeps the states of prompts that were read step by step, one token before their end.
    fn keep_ends_of_prompts(&mut self) {
        for (index, row) in self.rows.iter().enumerate() {
            let cacheable = self.jobs.get(&row.job).is_some_and(Job::cacheable);
            if cacheable && row.choice == 0 && row.at_end_of_prompt() {
                self.cache.insert(row.consumed_tokens(), || self.batch.select(&[index]));
            }
        }
    }

    fn publish(&self) {
        self.metrics.running.set((self.rows.len() + usize::from(self.reading.is_some())) as u64);
    }
}

fn runtime(error: impl std::fmt::Display) -> Failure {
    Failure::Runtime(error.to_string())
}

fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::Invalid(error.to_string())
}
