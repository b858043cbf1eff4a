//! The whole, from checkpoint to text: every model of the repository on every runtime, and the command as users meet
//! it. One binary, because linking the runtimes takes longer than running all of this.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod batching;
mod bench;
mod bundles;
mod command;
mod conformance;
mod eval;
mod forms;
mod greedy;
mod hostile;
mod parity;
mod random;
mod serve;
mod states;
mod table;
