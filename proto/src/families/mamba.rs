//! What the contract has in common for Mamba's relatives.

use crate::{
    DType, StateTensor,
    operators::{CAUSAL_CONV, SELECTIVE_SCAN, SELECTIVE_STEP},
    probes::LayerProbes,
};

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

/// What the probes of a Mamba layer depend on.
pub(super) struct Layer {
    pub(super) hidden: usize,
    pub(super) channels: usize,
    pub(super) taps: usize,
    pub(super) states: usize,
    pub(super) rank: usize,
    pub(super) use_bias: bool,
}

impl Layer {
    /// The probes of one layer; `norms` adds those between `x_proj` and `dt_proj`, `gates` those before the scan.
    pub(super) fn probes(
        &self,
        layer: &mut LayerProbes<'_>,
        norms: impl FnOnce(&mut LayerProbes<'_>),
        gates: impl FnOnce(&mut LayerProbes<'_>),
    ) {
        let (hidden, channels) = (self.hidden, self.channels);
        layer.tokens("norm", "norm/Mul", hidden);
        // A convolution of one tap is not an operator: the tap is multiplied into the scan's input.
        if self.taps > 1 {
            layer.operator("mixer.conv1d", &format!("mixer/{}.0", CAUSAL_CONV.name), channels);
            layer.state("conv_state");
        }
        layer.tokens("mixer.x_proj", "mixer/x_proj/MatMul", self.rank + 2 * self.states);
        norms(layer);
        layer.tokens("mixer.dt_proj", "mixer/dt_proj/MatMul", channels);
        gates(layer);
        layer.state("recurrent_state");
        let scan = layer.by_kind(&SELECTIVE_SCAN, &SELECTIVE_STEP);
        layer.operator("mixer.scan", &format!("mixer/{scan}.0"), channels);
        let out = if self.use_bias { "mixer/out_proj/Add" } else { "mixer/out_proj/MatMul" };
        layer.tokens("mixer.out_proj", out, hidden);
        layer.output(hidden);
    }
}
