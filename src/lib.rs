//! DenseMamba and DenseRetNet checkpoints out of PyTorch and into production.
//!
//! What the `densessm` command does is public here: [`export`] a checkpoint to a bundle, load the bundle on a runtime
//! ([`runtime::load`]), feed it tokens ([`Model`]), [`generate`] text piece by piece, and [snapshot](States::snapshot),
//! [fork](States::fork) and [restore](Model::restore) the states, whose size does not grow with the text.
//!
//! ```no_run
//! use densessm::{Bundle, Device, GenerateOptions, Prompt, Tokenizer, generate, runtime};
//!
//! let bundle = Bundle::open("bundle".as_ref())?;
//! let tokenizer = Tokenizer::open(bundle.dir())?;
//! let mut model = runtime::load(&bundle, runtime::Choice::Auto, Device::Cpu)?;
//! for piece in generate(&mut *model, &tokenizer, Prompt::text("KING RICHARD:\n"), GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), anyhow::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod bench;
pub mod eval;
pub mod inspect;
pub mod parity;
pub mod report;
pub mod runtime;

pub use densessm_bundle::{ExportOptions, Exported, Preset, export, init};
pub use densessm_checkpoint::Checkpoint;
pub use densessm_generate::{
    Continuation, FinishReason, GenerateOptions, Generation, GenerationConfig, Piece, Prompt, Sampling, SavedSequence,
    Sequence, Statistics, TextPosition, Tokenizer, generate, resume,
};
pub use densessm_proto as proto;
pub use densessm_session::{
    Availability, Bundle, Device, HostTensor, LoadOptions, Logits, Model, Product, RuntimeInfo, Snapshot, States,
    StatesError, TokenBatch, Values, argmax,
};
