//! The way from a handler to the scheduler and back.

use super::{Shared, error::ApiError};
use crate::{Event, Request, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The events of several requests, each with the number of its request.
pub(super) type Receiver = UnboundedReceiver<(usize, Event)>;

/// Sends the events of one of several requests. The number of events is bounded by the tokens of the requests.
struct RequestSink {
    number: usize,
    sender: UnboundedSender<(usize, Event)>,
}

impl Sink for RequestSink {
    fn send(&mut self, event: Event) {
        // Without a receiver, the scheduler finds the sink closed.
        let _ = self.sender.send((self.number, event));
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Submits requests, or none of them: when one is refused, those before it are cancelled.
pub(super) fn submit(shared: &Shared, requests: Vec<Request>) -> Result<Receiver, ApiError> {
    for request in &requests {
        shared.scheduler.check(request)?;
    }
    let (sender, receiver) = unbounded_channel();
    for (number, request) in requests.into_iter().enumerate() {
        let sink = Box::new(RequestSink { number, sender: sender.clone() });
        shared.scheduler.submit_to(request, sink)?;
    }
    Ok(receiver)
}

/// Does work that may take long outside the threads of the server.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::from(crate::Failure::Runtime("the request could not be prepared".to_owned()));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
