//! tract as a runtime of bundles: pure Rust, nothing to install.
//!
//! The one design decision: a graph becomes one optimized plan in which `batch` and `sequence` remain symbols, so that
//! weights are packed once and any size runs; states are tract's own tensors, passed from call to call.
//!
//! What tract lacks is replaced before it sees a graph: local functions by their bodies (`inline`) or, where there is
//! one, by a kernel (`kernels`); casts keep their 64 bits (`cast`).

#![forbid(unsafe_code)]

mod cast;
mod constants;
mod graph;
mod inline;
mod kernels;
mod model;
mod probe;
mod products;
mod roofline;
mod runtime;
mod states;
mod tensor;

pub use runtime::{TractRuntime, VERSION};

#[cfg(test)]
mod tests;
