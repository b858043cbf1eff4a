//! Looking at what a model computes on its way.

use crate::Real;
use ndarray::ArrayView2;

/// Who looks on.
///
/// What a module of the checkpoint gives is named by its path in the checkpoint (`backbone.layers.3.mixer.x_proj`), what
/// happens between modules by the layer's path and a word of its own (`….mixer.scan`, `….self_attn.retention`).
pub trait Observer<F: Real> {
    /// A module's output for the tokens of a chunk, the first of which is token `first` of the call: `[tokens, width]`.
    fn see(&mut self, name: &str, first: usize, value: ArrayView2<'_, F>);
}

/// Nobody looks on.
impl<F: Real> Observer<F> for () {
    fn see(&mut self, _: &str, _: usize, _: ArrayView2<'_, F>) {}
}

/// A chunk's outputs on their way to whoever looks on.
pub(crate) struct ChunkTrace<'t, F> {
    pub(crate) trace: &'t mut dyn Observer<F>,
    pub(crate) first: usize,
}

impl<F: Real> ChunkTrace<'_, F> {
    pub(crate) fn see(&mut self, name: &str, value: ArrayView2<'_, F>) {
        self.trace.see(name, self.first, value);
    }
}
