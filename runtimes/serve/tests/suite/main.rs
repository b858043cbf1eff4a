//! The scheduler and its cache, on a model that remembers what it was fed and on the trained checkpoints.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in tests, but does not count the functions they share")]

mod cache;
mod fake;
mod scheduler;
mod trained;
