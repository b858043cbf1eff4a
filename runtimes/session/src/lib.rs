//! A bundle opened, and the trait that every runtime implements.
//!
//! The one design decision: states belong to the runtime that made them and stay where it put them (its own tensors,
//! the card's memory); they become plain numbers only in a [`Snapshot`]. Everything above this crate (generation,
//! parity, benchmarks) drives a [`Model`] and never learns which runtime it is.

#![forbid(unsafe_code)]

mod argmax;
mod bundle;
mod error;
pub mod inputs;
mod model;
mod probe;
mod product;
mod signature;
mod snapshot;
mod states;
mod tensor;

pub use argmax::argmax;
pub use bundle::Bundle;
pub use error::Error;
pub use model::{Availability, Device, LoadOptions, Logits, Model, RuntimeInfo, TokenBatch};
pub use probe::{Probe, expose};
pub use product::{Product, min_time};
pub use signature::signature;
pub use snapshot::Snapshot;
pub use states::{StateStore, States, StatesError};
pub use tensor::{HostTensor, Values};
