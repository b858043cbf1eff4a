//! The kernels compared with plain formulas in f64, on every level of instructions that this processor has.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod call;
mod checks;
mod conv;
mod functions;
mod norm;
mod retention;
mod scan;
mod schemas;
mod threads;
