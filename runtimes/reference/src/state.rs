//! What a sequence carries from call to call.

use crate::Real;
use ndarray::ArrayD;
use std::collections::BTreeMap;

/// A sequence's states, under the names that a graph's inputs have.
#[derive(Clone, Debug, PartialEq)]
pub struct State<F> {
    /// Tokens consumed.
    pub position: i64,
    /// `past_key_values.{layer}.conv_state [D, K-1]`, `past_key_values.{layer}.recurrent_state [D, N]` or `[H, dk, dv]`.
    pub tensors: BTreeMap<String, ArrayD<F>>,
}

impl<F: Real> State<F> {
    pub(crate) fn zeros(shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let tensors = shapes.into_iter().map(|(name, shape)| (name, ArrayD::zeros(shape))).collect();
        Self { position: 0, tensors }
    }

    pub(crate) fn get(&mut self, layer: usize, kind: &str) -> &mut ArrayD<F> {
        let name = format!("past_key_values.{layer}.{kind}");
        self.tensors.entry(name).or_insert_with(|| ArrayD::zeros(vec![0]))
    }
}
