//! From a prompt to text: tokenizer, sampler, stop rules and the decode loop over any runtime.
//!
//! The one design decision: what a sequence is, is its token ids. The states have always consumed all of them but the
//! last few, the *pending* ones; a prompt makes the first pending tokens, each sampled token is the next. So starting,
//! going on after a pause and going on from saved states are one and the same loop, and the draw of a token depends
//! only on the seed and the token's position: a text is the same whether or not it was made in one go.
//!
//! ```no_run
//! use densessm_generate::{GenerationConfig, Prompt, Tokenizer, generate};
//!
//! # fn example(model: &mut dyn densessm_session::Model, bundle: &std::path::Path) -> Result<(), densessm_generate::Error> {
//! let tokenizer = Tokenizer::open(bundle)?;
//! let options = GenerationConfig::open(bundle)?.options();
//! let mut generation = generate(model, &tokenizer, Prompt::text("KING RICHARD:\n"), options)?;
//! for piece in &mut generation {
//!     print!("{}", piece?.text);
//! }
//! let progress = generation.into_progress();
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoder;
mod error;
mod generation;
mod options;
mod progress;
mod prompt;
mod sampler;
mod statistics;
mod stop;
mod text;
mod tokenizer;

pub use config::GenerationConfig;
pub use error::Error;
pub use generation::{Generation, PREFILL_CHUNK, Piece, generate};
pub use options::{FinishReason, GenerateOptions};
pub use progress::Progress;
pub use prompt::Prompt;
pub use sampler::{Sampler, Sampling};
pub use statistics::Statistics;
pub use text::TextStream;
pub use tokenizer::{TOKENIZER_FILE, TextPosition, Tokenizer};
