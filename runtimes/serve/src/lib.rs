//! Serves one model to many clients.
//!
//! A [`Scheduler`] owns the model on a thread of its own. Requests join its batch at any step and leave it as soon as
//! they end; prompts are read in pieces between the steps of the batch. A cache keeps states after prompts, so that a
//! prompt whose beginning was read before costs one copy of a state.
//!
//! ```no_run
//! use densessm_generate::{GenerateOptions, Tokenizer, TextPosition};
//! use densessm_serve::{Event, Request, Scheduler, SchedulerOptions};
//! use densessm_session::Model;
//!
//! # fn example(model: Box<dyn Model>, tokenizer: Tokenizer) -> Result<(), Box<dyn std::error::Error>> {
//! let prompt = tokenizer.encode("KING RICHARD:\n", TextPosition::Start)?;
//! let scheduler = Scheduler::start(model, tokenizer, SchedulerOptions::default())?;
//! for event in scheduler.submit(Request::new(prompt, GenerateOptions::default()))? {
//!     match event {
//!         Event::Piece(piece) => print!("{}", piece.text),
//!         Event::Failed(failure) => return Err(failure.into()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The cargo feature `http` adds [`HttpServer`](https://docs.rs/densessm-serve/latest/densessm_serve/struct.HttpServer.html),
//! which serves a scheduler in the shape of OpenAI's interface.
//!
//! The one design decision: what a request computes depends only on the request and on the cached states that it
//! continues, up to the rounding of a batch. Its prompt is read alone, in pieces whose boundaries the request decides,
//! and a draw depends on the seed, the position and the scores.

#![forbid(unsafe_code)]

mod cache;
mod error;
mod event;
#[cfg(feature = "http")]
mod http;
mod job;
mod log;
mod logprobs;
mod metrics;
mod options;
mod request;
mod saved;
mod scheduler;
mod worker;

pub use error::{Error, Failure, Refusal};
pub use event::{Event, Events, Finish, GeneratedPiece, Sink, Started};
#[cfg(feature = "http")]
pub use http::{HttpOptions, HttpServer};
pub use log::Log;
pub use logprobs::TokenLogprobs;
pub use metrics::Metrics;
pub use options::{CacheOptions, SchedulerOptions};
pub use request::{Input, Request};
pub use saved::SavedInfo;
pub use scheduler::Scheduler;
