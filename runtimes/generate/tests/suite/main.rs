//! From tokens to text and from prompts to sequences, on the tokenizer of the trained checkpoints and a model that
//! remembers what it was fed. One program, so that the tokenizer library is linked once.

mod fake;
mod generation;
mod streaming;
mod tokenizer;
