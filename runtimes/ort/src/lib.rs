//! ONNX Runtime as a runtime of bundles.
//!
//! The one design decision: a step looks up no names and copies no states. A sequence's states are in two sets of
//! tensors; one IO binding reads the first and writes the second, another the reverse, and steps alternate between
//! them. A call that fails has therefore not changed the states that it read.

mod device;
mod error;
mod library;
mod model;
mod probe;
mod roofline;
mod runtime;
mod session;
mod states;
mod weights;

pub use library::library;
pub use runtime::OrtRuntime;
