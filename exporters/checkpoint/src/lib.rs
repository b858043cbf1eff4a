//! `config.json`, safetensors and torch pickles, read strictly.
//!
//! The one design decision: opening a checkpoint reads headers only, and everything that can be wrong with them is
//! found then; tensors are read in pieces, by position, so that nobody ever holds a file. A pickle is data here: its
//! few opcodes build a description of tensors, and there is nothing that it could call.

#![forbid(unsafe_code)]

mod account;
mod checkpoint;
pub mod config;
mod error;
mod families;
mod read;
mod safetensors_file;
mod shards;
mod tensor;
mod torch;

pub use checkpoint::Checkpoint;
pub use error::Error;
pub use tensor::{DType, Tensor};
