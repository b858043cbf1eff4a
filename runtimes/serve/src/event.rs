//! What a client is told about its request, and how.

use crate::{Failure, TokenLogprobs};
use densessm_generate::FinishReason;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, Sender},
};

/// What happens to a request, in order: [`Started`](Event::Started), the log-probabilities of the prompt if they were
/// asked for, pieces of text, and one [`Finished`](Event::Finished) for each choice; or [`Failed`](Event::Failed) at any
/// time, after which nothing follows.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The request has left the queue.
    Started(Started),
    /// Log-probabilities of tokens of the prompt, in order, the first token's excepted (nothing predicts it).
    Prompt(Vec<TokenLogprobs>),
    /// A choice has one more token, or text that was held back.
    Piece(GeneratedPiece),
    /// A choice has ended.
    Finished(Finish),
    /// The request has failed.
    Failed(Failure),
}

/// What is known when a request leaves the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Started {
    /// Number of tokens of the prompt, and of a saved sequence those that its states had yet to consume.
    pub prompt_tokens: usize,
    /// Number of them that cached states had consumed.
    pub cached_tokens: usize,
}

/// A piece of a choice.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GeneratedPiece {
    /// The choice, from 0.
    pub choice: usize,
    /// The token, unless the sequence ended without one.
    pub token: Option<u32>,
    /// Text that is final; often empty.
    pub text: String,
    /// The token's log-probability, if it was asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// The end of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finish {
    /// The choice, from 0.
    pub choice: usize,
    /// Why it ended.
    pub reason: FinishReason,
    /// Number of tokens that were generated.
    pub new_tokens: usize,
    /// The name under which the sequence is kept, if that was asked for.
    pub saved: Option<String>,
}

/// Where the events of a request go. A request whose sink is closed is cancelled.
pub trait Sink: Send {
    /// Takes an event. It must not block: the thread of the model calls it.
    fn send(&mut self, event: Event);

    /// Returns whether nobody receives the events any more.
    fn is_closed(&self) -> bool;
}

/// The events of a request, as a blocking iterator. Dropping it cancels the request.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    closed: Arc<AtomicBool>,
}

pub(crate) struct ChannelSink {
    sender: Sender<Event>,
    closed: Arc<AtomicBool>,
}

pub(crate) fn channel() -> (ChannelSink, Events) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let closed = Arc::new(AtomicBool::new(false));
    (ChannelSink { sender, closed: Arc::clone(&closed) }, Events { receiver, closed })
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.receiver.recv().ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl Sink for ChannelSink {
    fn send(&mut self, event: Event) {
        if self.sender.send(event).is_err() {
            self.closed.store(true, Ordering::Release);
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
