//! From tokens to text and from prompts to sequences, on the tokenizer of the trained checkpoints and a model that
//! remembers what it was fed. One program, so that the tokenizer library is linked once.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in tests, but does not count the functions they share")]

mod fake;
mod generation;
mod sequence;
mod streaming;
mod tokenizer;
