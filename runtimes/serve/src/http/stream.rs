//! An answer as server-sent events.

use super::{error::ApiError, reply::Reply, submit::Receiver};
use crate::Failure;
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_core::Stream;
use serde_json::Value;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The chunks of an answer as they become known. Dropping it, when the client has gone, cancels the requests.
struct Chunks {
    receiver: Receiver,
    reply: Reply,
    include_usage: bool,
    ready: VecDeque<Bytes>,
    done: bool,
}

/// Answers with a stream that ends in `[DONE]`, or in an error.
pub(super) fn respond(receiver: Receiver, reply: Reply, include_usage: bool) -> Response {
    let chunks = Chunks { receiver, reply, include_usage, ready: VecDeque::new(), done: false };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(chunks)).into_response()
}

impl Chunks {
    fn push(&mut self, value: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {value}\n\n")));
    }

    fn fail(&mut self, failure: Failure) {
        self.push(&ApiError::from(failure).body());
        self.done = true;
    }

    fn complete(&mut self) {
        if self.include_usage {
            let usage = self.reply.usage_chunk();
            self.push(&usage);
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }
}

impl Stream for Chunks {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunks = self.get_mut();
        loop {
            if let Some(bytes) = chunks.ready.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if chunks.done {
                return Poll::Ready(None);
            }
            match ready!(chunks.receiver.poll_recv(context)) {
                None => chunks.fail(Failure::Stopping),
                Some((prompt, event)) => match chunks.reply.take(prompt, event) {
                    Err(failure) => chunks.fail(failure),
                    Ok(gained) => {
                        if let Some(chunk) = gained.and_then(|index| chunks.reply.chunk(index)) {
                            chunks.push(&chunk);
                        }
                        if chunks.reply.is_complete() {
                            chunks.complete();
                        }
                    }
                },
            }
        }
    }
}
