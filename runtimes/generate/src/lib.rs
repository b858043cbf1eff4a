//! From a prompt to text: tokenizer, sampler, stop strings and the decode loop, on any runtime.
//!
//! A [`Sequence`] knows everything about one text but the model: which tokens to feed next, and which token follows
//! from the logits. [`generate`] drives one with a model:
//!
//! ```no_run
//! use densessm_generate::{GenerationConfig, Prompt, Tokenizer, generate, resume};
//!
//! # fn example(model: &mut dyn densessm_session::Model, bundle: &std::path::Path) -> Result<(), densessm_generate::Error> {
//! let tokenizer = Tokenizer::open(bundle)?;
//! let options = GenerationConfig::open(bundle)?.options();
//! let mut generation = generate(model, &tokenizer, Prompt::text("KING RICHARD:\n"), options.clone())?;
//! for piece in &mut generation {
//!     print!("{}", piece?.text);
//! }
//! // The same sequence can be continued, at once or in another process.
//! let saved = generation.into_saved();
//! let (text, _) = resume(model, &tokenizer, saved, Some(Prompt::text("\nJULIET:\n")), options)?.read_to_end()?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoder;
mod error;
mod generation;
mod options;
mod prompt;
mod sampler;
mod saved;
mod sequence;
mod statistics;
mod stop;
mod text;
mod tokenizer;

pub use config::GenerationConfig;
pub use error::Error;
pub use generation::{Generation, PREFILL_CHUNK, generate, resume};
pub use options::{FinishReason, GenerateOptions};
pub use prompt::Prompt;
pub use sampler::{Sampler, Sampling};
pub use saved::SavedSequence;
pub use sequence::{Continuation, Piece, Sequence};
pub use statistics::Statistics;
pub use text::TextStream;
pub use tokenizer::{TOKENIZER_FILE, TextPosition, Tokenizer};
