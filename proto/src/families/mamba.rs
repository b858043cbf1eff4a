//! What the contract has in common for Mamba's relatives.

use super::Probe;
use crate::{DType, GraphKind, StateTensor};

/// The states of a Mamba layer: `conv_state [D, K-1]` (absent for K = 1) and `recurrent_state [D, N]`.
pub(super) fn states(layer: usize, channels: usize, taps: usize, states: usize) -> Vec<StateTensor> {
    let conv = (taps > 1).then(|| StateTensor::new(layer, "conv_state", DType::F32, vec![channels, taps - 1]));
    let recurrent = StateTensor::new(layer, "recurrent_state", DType::F32, vec![channels, states]);
    conv.into_iter().chain([recurrent]).collect()
}

/// Operations of one token in a Mamba layer that reads the states of `neighbours` layers.
///
/// The convolution takes two for each tap. Each state takes Δa, exp, two products and a sum for its update and two
/// operations for its read-out; each neighbour adds two more.
pub(super) fn layer_flops(channels: usize, taps: usize, states: usize, neighbours: usize) -> usize {
    2 * channels * taps + channels * states * (7 + 2 * neighbours)
}

/// The probes that every Mamba layer has.
pub(super) fn layer_probes(layer: usize, taps: usize, kind: GraphKind) -> Vec<Probe> {
    let (module, value) = (format!("backbone.layers.{layer}"), format!("backbone/layers/{layer}"));
    let scan = match kind {
        GraphKind::Parallel => "SelectiveScan",
        GraphKind::Recurrent => "SelectiveStep",
    };
    // A convolution of one tap is not an operator of its own.
    let conv = (taps > 1).then(|| Probe::new(format!("{module}.mixer.conv1d"), format!("{value}/mixer/CausalConv.0")));
    let others = [
        Probe::new(format!("{module}.norm"), format!("{value}/norm/Mul")),
        Probe::new(format!("{module}.mixer.x_proj"), format!("{value}/mixer/x_proj/MatMul")),
        Probe::new(format!("{module}.mixer.dt_proj"), format!("{value}/mixer/dt_proj/MatMul")),
        Probe::new(format!("{module}.mixer.scan"), format!("{value}/mixer/{scan}.0")),
        Probe::new(module, format!("{value}/Add")),
    ];
    others.into_iter().chain(conv).collect()
}

/// The probe of the embedding.
pub(super) fn embedding_probe() -> Probe {
    Probe::new("backbone.embeddings", "backbone/Gather")
}
