//! Observing the values that a model computes on the way to its logits.

use crate::Real;
use ndarray::ArrayView2;

/// Receives the values that a model computes.
///
/// The output of a module of the checkpoint has the module's path (`backbone.layers.3.mixer.x_proj`) as its name; a value
/// between modules has the layer's path and a word of its own (`….mixer.scan`, `….self_attn.retention`).
pub trait Observer<F: Real> {
    /// A module's output for the tokens of a chunk, the first of which is token `first` of the call: `[tokens, width]`.
    fn see(&mut self, name: &str, first: usize, value: ArrayView2<'_, F>);
}

/// Observes nothing.
impl<F: Real> Observer<F> for () {
    fn see(&mut self, _: &str, _: usize, _: ArrayView2<'_, F>) {}
}

/// Passes a chunk's values on to the observer.
pub(crate) struct ChunkTrace<'t, F> {
    pub(crate) trace: &'t mut dyn Observer<F>,
    pub(crate) first: usize,
}

impl<F: Real> ChunkTrace<'_, F> {
    pub(crate) fn see(&mut self, name: &str, value: ArrayView2<'_, F>) {
        self.trace.see(name, self.first, value);
    }
}
