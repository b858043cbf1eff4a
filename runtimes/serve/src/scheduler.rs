//! The handle of a scheduler: requests go in, and their events come out.

use crate::{
    Error, Event, Events, Failure, Input, Log, Metrics, Refusal, Request, SavedInfo, SchedulerOptions, Sink,
    cache::Cache,
    event::channel,
    job::Job,
    saved::SavedSequences,
    worker::{Graphs, Message, Worker},
};
use densessm_generate::{Prompt, Sequence, Tokenizer};
use densessm_session::{Bundle, Model, RuntimeInfo, Snapshot};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Sender, channel as messages},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A model on a thread of its own, and the way to it. Clones share it.
///
/// When the last clone is dropped, the thread ends after the requests that it has accepted;
/// [`Scheduler::shutdown`] waits for that.
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

struct Shared {
    sender: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Tokenizer,
    bundle: Bundle,
    info: RuntimeInfo,
    options: SchedulerOptions,
    metrics: Arc<Metrics>,
    next: AtomicU64,
    stopping: AtomicBool,
}

const _: () = {
    const fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Scheduler>();
};

impl Scheduler {
    /// Starts the thread of a model, without log lines.
    ///
    /// # Errors
    /// When an option is out of range, the folder of the cache cannot be used, or the states cannot be allocated.
    pub fn start(model: Box<dyn Model>, tokenizer: Tokenizer, options: SchedulerOptions) -> Result<Self, Error> {
        Self::start_with_log(model, tokenizer, options, Log::default())
    }

    /// Starts the thread of a model. The model has to hold every graph of its bundle.
    ///
    /// # Errors
    /// As [`Scheduler::start`].
    pub fn start_with_log(
        mut model: Box<dyn Model>,
        tokenizer: Tokenizer,
        options: SchedulerOptions,
        log: Log,
    ) -> Result<Self, Error> {
        options.check()?;
        let metrics = Arc::new(Metrics::default());
        metrics.slots.set(options.slots as u64);
        let (sender, receiver) = messages();
        let graphs = Graphs::of(model.bundle());
        let (bundle, info) = (model.bundle().clone(), model.info().clone());
        let cache = Cache::open(&bundle, &options.cache, Arc::clone(&metrics), log.clone())?;
        let mut batch = model.initial_states(0)?;
        batch.reserve(options.slots)?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let worker = Worker {
            model,
            tokenizer: tokenizer.clone(),
            options: options.clone(),
            graphs,
            receiver,
            cache,
            saved: SavedSequences::new(options.max_saved, started),
            batch,
            rows: Vec::new(),
            jobs: Default::default(),
            waiting: Default::default(),
            reading: None,
            metrics: Arc::clone(&metrics),
            log,
            deadline: None,
            closed: false,
        };
        let thread =
            std::thread::Builder::new().name("scheduler".to_owned()).spawn(|| worker.run()).map_err(Error::Thread)?;
        Ok(Self(Arc::new(Shared {
            sender,
            thread: Mutex::new(Some(thread)),
            tokenizer,
            bundle,
            info,
            options,
            metrics,
            next: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        })))
    }

    /// Submits a request and returns its events.
    ///
    /// # Errors
    /// When the request is refused; nothing is computed then.
    pub fn submit(&self, request: Request) -> Result<Events, Refusal> {
        let (sink, events) = channel();
        self.submit_to(request, Box::new(sink))?;
        Ok(events)
    }

    /// Submits a request whose events go to a sink, and returns its number, which appears in log lines.
    ///
    /// # Errors
    /// As [`Scheduler::submit`].
    pub fn submit_to(&self, request: Request, sink: Box<dyn Sink>) -> Result<u64, Refusal> {
        let result = self.accept(request, sink);
        if result.is_err() {
            self.0.metrics.refused.add(1);
        }
        result
    }

    fn accept(&self, request: Request, sink: Box<dyn Sink>) -> Result<u64, Refusal> {
        let shared = &*self.0;
        if !self.is_running() {
            return Err(Refusal::Stopping);
        }
        self.check(&request)?;
        let limit = shared.options.queue;
        if !shared.metrics.waiting.add_below(limit as u64) {
            return Err(Refusal::QueueFull { limit });
        }
        let id = shared.next.fetch_add(1, Ordering::Relaxed) + 1;
        shared.sender.send(Message::Submit(Box::new(Job::new(id, request, sink)))).map_err(|_| Refusal::Stopping)?;
        Ok(id)
    }

    /// Checks a request against the limits, without submitting it.
    ///
    /// # Errors
    /// When it would be refused whatever the load.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let SchedulerOptions { slots, max_prompt_tokens, max_new_tokens, .. } = self.0.options;
        let tokens = request.tokens();
        if tokens.len() > max_prompt_tokens {
            return Err(Refusal::PromptTooLong { limit: max_prompt_tokens, got: tokens.len() });
        }
        if request.options.max_new_tokens > max_new_tokens {
            return Err(Refusal::TooManyNewTokens { limit: max_new_tokens, got: request.options.max_new_tokens });
        }
        if request.choices == 0 || request.choices > slots {
            return Err(Refusal::Choices { limit: slots, got: request.choices });
        }
        let vocabulary = self.0.bundle.architecture().vocab_size();
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Refusal::Token { token, vocabulary });
        }
        // The options are checked by a sequence of one token. A saved sequence has tokens of its own; what follows it may
        // be empty.
        let probe: Vec<u32> = match request.input {
            Input::Prompt(_) => tokens.iter().take(1).copied().collect(),
            Input::Saved { .. } => vec![0],
        };
        match Sequence::new(&self.0.tokenizer, Prompt::tokens(probe), request.options.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::Invalid(error.to_string())),
        }
    }

    /// Keeps the sequence of a snapshot, with its pending tokens, under a name.
    ///
    /// # Errors
    /// When the snapshot is another model's, does not hold one sequence, or nothing may be kept.
    pub fn load(&self, snapshot: Snapshot) -> Result<SavedInfo, Failure> {
        self.ask(|reply| Message::Load(Box::new(snapshot), reply))?
    }

    /// Returns a snapshot of a sequence that is kept under a name, in the format of `generate --load-state`.
    ///
    /// # Errors
    /// When there is none, or the states cannot be copied.
    pub fn fetch(&self, id: &str) -> Result<Snapshot, Failure> {
        self.ask(|reply| Message::Fetch(id.to_owned(), reply))?
    }

    /// Drops a sequence that is kept under a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn forget(&self, id: &str) -> Result<(), Failure> {
        self.ask(|reply| Message::Forget(id.to_owned(), reply))?
    }

    fn ask<T>(&self, message: impl FnOnce(Sender<T>) -> Message) -> Result<T, Failure> {
        let (reply, answer) = messages();
        self.0.sender.send(message(reply)).map_err(|_| Failure::Stopping)?;
        answer.recv().map_err(|_| Failure::Stopping)
    }

    /// Accepts no further requests, gives the accepted ones this much time to end, fails the rest, writes what the cache
    /// has yet to write, and returns when the thread has ended.
    pub fn shutdown(&self, time: Duration) {
        self.0.stopping.store(true, Ordering::Release);
        // An error means that the thread has ended already.
        let _ = self.0.sender.send(Message::Drain(time));
        let thread = self.0.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been printed; every request has seen its channel close.
            let _ = thread.join();
        }
    }

    /// Returns whether requests are accepted: the thread runs and is not shutting down.
    pub fn is_running(&self) -> bool {
        let thread = self.0.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !self.0.stopping.load(Ordering::Acquire) && thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Returns the counts and times.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Returns the bundle that is served.
    pub fn bundle(&self) -> &Bundle {
        &self.0.bundle
    }

    /// Returns the runtime and the device.
    pub fn info(&self) -> &RuntimeInfo {
        &self.0.info
    }

    /// Returns the options.
    pub fn options(&self) -> &SchedulerOptions {
        &self.0.options
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("bundle", &self.0.bundle.dir()).finish_non_exhaustive()
    }
}

/// Where a client that only wants the outcome looks.
impl Events {
    /// Waits for the end and returns the text of the first choice, with all that was told on the way.
    ///
    /// # Errors
    /// When the request fails.
    pub fn read_to_end(self) -> Result<(String, Vec<Event>), Failure> {
        let (mut text, mut events) = (String::new(), Vec::new());
        for event in self {
            match &event {
                Event::Piece(piece) if piece.choice == 0 => text.push_str(&piece.text),
                Event::Failed(failure) => return Err(failure.clone()),
                _ => {}
            }
            events.push(event);
        }
        match events.last() {
            Some(Event::Finished(_)) => Ok((text, events)),
            _ => Err(Failure::Stopping),
        }
    }
}
