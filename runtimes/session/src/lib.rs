//! Bundles, and the traits that every runtime implements.
//!
//! A [`Runtime`] loads a [`Bundle`] and returns a [`Model`]; the [`Registry`] chooses among the runtimes of a build.
//! Everything above this crate (generation, parity, benchmarks) uses these traits and does not depend on the runtime.
//!
//! The one design decision: states belong to the runtime that made them and stay in its memory (its own tensors, the
//! GPU's memory); they become plain numbers only in a [`Snapshot`].
//!
//! The cargo feature `onnx` adds what the crates that implement runtimes share: reading a bundle's graphs as ONNX
//! messages.

#![forbid(unsafe_code)]

mod argmax;
mod bundle;
mod device;
mod error;
mod file;
mod info;
pub mod inputs;
mod model;
#[cfg(feature = "onnx")]
pub mod onnx;
mod options;
mod placement;
mod probe;
mod product;
#[cfg(feature = "onnx")]
mod product_model;
mod runtime;
mod signature;
mod snapshot;
mod states;
mod tensor;
mod unusable;

pub use argmax::argmax;
pub use bundle::Bundle;
pub use device::{Device, ParseDeviceError, Provider};
pub use error::Error;
pub use file::write_atomically;
pub use info::{RuntimeId, RuntimeInfo, Version};
pub use model::{Logits, Model, TokenBatch};
pub use options::{LoadOptions, check_threads};
pub use placement::GraphPlacement;
pub use probe::Probe;
pub use product::{Product, min_time};
pub use runtime::{Choice, Registry, Runtime};
pub use signature::signature;
pub use snapshot::Snapshot;
pub use states::{StateStore, States, StatesError};
pub use tensor::{HostTensor, Values};
pub use unusable::{Unusable, UnusableReason};
