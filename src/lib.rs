//! Exports DenseMamba and DenseRetNet checkpoints to ONNX graphs and runs them.
//!
//! This library contains what the `densessm` command does: [`export`] writes a checkpoint as a bundle,
//! [`runtime::load`] loads the bundle on a runtime, [`Model`] consumes tokens, [`generate`] generates text, and states,
//! whose size does not grow with the text, can be [saved](States::snapshot), [copied](States::fork) and
//! [restored](Model::restore). [`parity::check`] proves that a bundle computes what its checkpoint does.
//!
//! ```no_run
//! use densessm::{Bundle, Device, GenerateOptions, Prompt, Tokenizer, generate, runtime};
//!
//! let bundle = Bundle::open("bundle".as_ref())?;
//! let tokenizer = Tokenizer::open(bundle.dir())?;
//! let mut model = runtime::load(&bundle, runtime::Choice::Auto, Device::CPU)?;
//! for piece in generate(&mut *model, &tokenizer, Prompt::text("KING RICHARD:\n"), GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), densessm::Error>(())
//! ```
//!
//! # Cargo features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `ort` | yes | ONNX Runtime as a runtime; its shared library is loaded when it is first used |
//! | `tract` | yes | tract as a runtime, compiled in |
//! | `cli` | yes | the `densessm` command, and `charts` |
//! | `charts` | with `cli` | charts in HTML reports |
//!
//! A library needs one runtime: `densessm = { version = "0.1", default-features = false, features = ["tract"] }`.

#![forbid(unsafe_code)]

pub mod bench;
pub mod error;
pub mod eval;
pub mod inspect;
pub mod parity;
pub mod report;
pub mod runtime;
#[cfg(test)]
mod threads;

pub use error::Error;

pub use densessm_bundle::{ExportOptions, Exported, Preset, export, init};
pub use densessm_checkpoint::Checkpoint;
pub use densessm_generate::{
    Continuation, FinishReason, GenerateOptions, Generation, GenerationConfig, Piece, Prompt, Sampling, SavedSequence,
    Sequence, Statistics, TextPosition, Tokenizer, generate, resume,
};
pub use densessm_proto as proto;
pub use densessm_session::{
    Bundle, Device, GraphPlacement, HostTensor, LoadOptions, Logits, Model, ParseDeviceError, Probe, Provider,
    RuntimeInfo, Snapshot, States, StatesError, TokenBatch, Values, argmax, write_atomically,
};
