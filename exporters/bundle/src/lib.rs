//! Checkpoint in, bundle out.
//!
//! The one design decision: a bundle is complete or not there. It is built in a folder beside its target and renamed
//! at the end; weights stream from the checkpoint's files into the data file, one tensor at a time.

#![forbid(unsafe_code)]

mod error;
mod export;
mod folder;
mod init;
mod plan;
mod presets;
mod random;
mod target;
mod tensorrt;
mod weights;

pub use error::Error;
pub use export::{ExportOptions, ExportProgress, Exported, export};
pub use init::{Initialized, init};
pub use presets::{Preset, UnknownPreset};
pub use target::Target;
