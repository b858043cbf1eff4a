//! Reads checkpoints: `config.json` with safetensors or torch files, single or sharded.
//!
//! Opening a [`Checkpoint`] reads headers only and reports everything that is wrong with them. The elements of tensors
//! are read later, in pieces, so that no file is ever held in memory. A pickle is treated as data: a closed list of
//! opcodes and classes describes tensors, and nothing in it is ever called.

#![forbid(unsafe_code)]

mod account;
mod checkpoint;
mod checksum;
pub mod config;
mod convert;
mod elements;
mod error;
mod families;
mod file;
mod json;
mod safetensors_file;
mod shards;
mod tensor;
mod torch;
mod view;
mod weights;

pub use checkpoint::Checkpoint;
pub use error::Error;
pub use tensor::{StoredDType, Tensor};
