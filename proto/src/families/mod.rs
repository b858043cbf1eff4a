//! The model families: a file each for what the contract needs to know of them.
//!
//! A family's dimensions are a struct whose fields have the names of the checkpoint's `config.json`. What the rest of the
//! contract derives from them (states, sizes, cost, names of values inside the graphs) is its [`Family`]. Reading a
//! configuration, writing a graph and computing a reference belong to other crates, again with one file for each family.

mod dense_mamba;
mod dense_retnet;
mod falcon_mamba;
mod mamba;

pub use dense_mamba::{DenseMamba, Projection};
pub use dense_retnet::DenseRetNet;
pub use falcon_mamba::FalconMamba;

use crate::{StateTensor, probes::ProbeList};

/// What the contract needs to know of a model, whatever its family.
pub trait Family {
    /// The family's name as reports print it.
    fn name(&self) -> &'static str;

    /// Number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Width of the residual stream.
    fn hidden_size(&self) -> usize;

    /// Number of layers.
    fn num_hidden_layers(&self) -> usize;

    /// Whether the output head is the embedding.
    fn tie_word_embeddings(&self) -> bool;

    /// m: the number of layers below that a layer reads; 0 without dense connections.
    fn dense_block_layers(&self) -> usize;

    /// Whether the graphs take and return each row's position (`past_length`, `present_length`).
    fn counts_positions(&self) -> bool;

    /// The states of one layer, in the order in which the graphs list them. All layers have states of the same shapes.
    fn states(&self, layer: usize) -> Vec<StateTensor>;

    /// The dimensions that must be at least 1, by name.
    fn sizes(&self) -> Vec<(&'static str, usize)>;

    /// Checks how the dimensions must relate to each other, [`sizes`](Self::sizes) aside.
    ///
    /// # Errors
    /// Saying what is wrong, expected and got.
    fn check(&self) -> Result<(), String>;

    /// Floating-point operations of one token in the recurrences of all layers: update and read-out of the states, an
    /// exponential counted as one.
    fn recurrence_flops(&self) -> usize;

    /// Lists the values inside a graph that have a counterpart in the reference implementation, in the order of
    /// computation. [`probes`](crate::probes()) returns them.
    fn probes(&self, list: &mut ProbeList);
}

/// The layers whose values layer `layer` reads if each reads `count` of those below, nearest first.
fn neighbours(layer: usize, count: usize) -> impl Iterator<Item = usize> {
    (layer.saturating_sub(count)..layer).rev()
}
