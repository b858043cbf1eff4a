//! The models in plain `ndarray`, in f32 or f64: what a graph's results are compared with.
//!
//! The one design decision: it shares nothing with the exporter. It reads `config.json` and the tensors by itself, holds
//! them as they are, and states each equation once, for a chunk of tokens; one token is a chunk of one, and then the
//! equations are those of the recurrence.

#![deny(unsafe_code)]

mod blocks;
mod config;
mod dense_mamba;
mod dense_retnet;
mod error;
mod falcon_mamba;
mod family;
mod mamba;
mod model;
mod state;
mod trace;
mod weights;

pub use error::Error;
pub use model::Reference;
pub use state::State;
pub use trace::Observer;
pub use weights::{HalfType, Tensors};

/// The precision of a computation: `f32` or `f64`.
pub trait Real: ndarray::NdFloat + std::iter::Sum {
    /// The nearest number to one in f64.
    fn of(x: f64) -> Self;
    /// As f64, exactly.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }

    fn wide(self) -> f64 {
        self
    }
}
