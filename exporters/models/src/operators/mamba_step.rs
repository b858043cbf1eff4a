//! The whole decode step of Mamba and DenseMamba, as one operator over all weights and states.

use super::{
    causal_conv::{CausalConv, ConvInputs},
    selective_scan::Recurrence,
    selective_step::{SelectiveStep, StepInputs},
};
use crate::nn::{rms_norm, times_transposed};
use densessm_graph::{Attribute, DType, Operator, Scope, Value, values};
use densessm_proto::operators::{self, Schema};
use std::collections::VecDeque;

const SCHEMA: &Schema = &operators::MAMBA_STEP;

/// One token of a whole Mamba or DenseMamba; matrices have the checkpoint's layout `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct MambaStep {
    /// Layers above the first.
    pub upper_layers: usize,
    /// m: layers below whose hidden states a layer reads; 0 for plain Mamba.
    pub neighbours: usize,
    /// D: channels of a layer.
    pub channels: usize,
    /// G: middle width of each gate; 0 without gates.
    pub gate: usize,
    /// Epsilon of the norms.
    pub epsilon: f32,
}

/// Operands of [`MambaStep`]; results are the logits `[B, 1, V]`, then each layer's [`LayerResults`].
#[derive(Clone, Debug)]
pub struct MambaStepInputs<'g> {
    /// Token ids, int64 `[B, 1]`.
    pub tokens: Value<'g>,
    /// Vectors of the tokens `[V, H]`.
    pub embedding: Value<'g>,
    /// Weights of the norm before the head `[H]`.
    pub norm: Value<'g>,
    /// Output head `[V, H]`.
    pub head: Value<'g>,
    /// The first layer, which reads no layer below.
    pub first: LayerInputs<'g>,
    /// The layers above it.
    pub upper: Vec<LayerInputs<'g>>,
    /// Their gates; none in plain Mamba.
    pub gates: Vec<GateInputs<'g>>,
}

/// Weights and states of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerInputs<'g> {
    /// Weights of the norm before the layer `[H]`.
    pub norm: Value<'g>,
    /// Projection to the convolution's input, the output gate and the gates' middles `[2 D + 2 G, H]`, without the last
    /// where there are no gates.
    pub in_proj: Value<'g>,
    /// Taps `[K, D]`, the newest input's last.
    pub conv_weight: Value<'g>,
    /// Bias of the convolution `[D]`.
    pub conv_bias: Value<'g>,
    /// Projection to step sizes, input vectors and output vectors `[R + 2 N, D]`.
    pub x_proj: Value<'g>,
    /// Projection of the step sizes `[D, R]`.
    pub dt_proj: Value<'g>,
    /// Bias of the step sizes `[D]`.
    pub dt_bias: Value<'g>,
    /// Decay rates `[D, N]`, negative.
    pub a: Value<'g>,
    /// Skip weights `[D]`.
    pub skip: Value<'g>,
    /// Output projection `[H, D]`.
    pub out_proj: Value<'g>,
    /// The convolution's inputs before this token `[B, D, K-1]`, oldest first.
    pub conv_state: Value<'g>,
    /// Hidden states before this token `[B, D, N]`.
    pub state: Value<'g>,
}

/// Second matrices of a layer's gates.
#[derive(Clone, Copy, Debug)]
pub struct GateInputs<'g> {
    /// That of the channels' gate `[D, G]`.
    pub channel_gate: Value<'g>,
    /// That of the states' gate `[N, G]`.
    pub state_gate: Value<'g>,
}

values!(LayerInputs {
    norm,
    in_proj,
    conv_weight,
    conv_bias,
    x_proj,
    dt_proj,
    dt_bias,
    a,
    skip,
    out_proj,
    conv_state,
    state
});
values!(GateInputs { channel_gate, state_gate });
values!(MambaStepInputs { tokens, embedding, norm, head, first, upper, gates });

/// A layer's states after the token: the convolution's inputs `[B, D, K-1]`, and the hidden states `[B, D, N]`.
pub type LayerResults<'g> = [Value<'g>; 2];

impl Operator for MambaStep {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = MambaStepInputs<'g>;
    type Outputs<'g> = (Value<'g>, Vec<LayerResults<'g>>);

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let gated = if self.neighbours > 0 { self.upper_layers } else { 0 };
        let integer = |value: usize| Attribute::from(value as i64);
        vec![
            ("upper_layers", integer(self.upper_layers)),
            ("gated_layers", integer(gated)),
            ("neighbours", integer(self.neighbours)),
            ("upper_rows", integer(2 * self.channels + 2 * self.gate)),
            ("gate", integer(self.gate)),
            ("epsilon", self.epsilon.into()),
        ]
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: MambaStepInputs<'g>) -> (Value<'g>, Vec<LayerResults<'g>>) {
        let MambaStepInputs { tokens, embedding, norm, head, first, upper, gates } = inputs;
        let activation = embedding.dtype();
        let mut x = embedding.gather(tokens).cast(DType::F32);
        let mut results = Vec::with_capacity(1 + upper.len());
        let mut below = VecDeque::new(); // nearest first
        let gates = std::iter::once(None).chain(gates.into_iter().map(Some)).chain(std::iter::repeat(None));
        for (layer, gates) in std::iter::once(first).chain(upper).zip(gates) {
            let normed = rms_norm(x, layer.norm, self.epsilon).cast(activation);
            let (out, states) = self.layer(p, layer, gates, normed, below.make_contiguous());
            x = x + out.cast(DType::F32);
            below.push_front(states[1]);
            below.truncate(self.neighbours);
            results.push(states);
        }
        let normed = rms_norm(x, norm, self.epsilon).cast(activation);
        (times_transposed(normed, head).cast(DType::F32), results)
    }
}

impl MambaStep {
    /// A layer without its norm and residual: `[B, 1, H] -> [B, 1, H]`, and its states.
    fn layer<'g>(
        &self,
        p: Scope<'g>,
        layer: LayerInputs<'g>,
        gates: Option<GateInputs<'g>>,
        x: Value<'g>,
        below: &[Value<'g>],
    ) -> (Value<'g>, LayerResults<'g>) {
        let (d, g) = (self.channels, self.gate);
        let (rank, states) = (layer.dt_proj.size(1), layer.a.size(1));
        let projected = times_transposed(x, layer.in_proj);
        let (u, z, gates) = match gates {
            None => {
                let [u, z] = projected.split_sizes(-1, [d, d]);
                (u, z, None)
            }
            Some(gates) => {
                let [u, z, channel, state] = projected.split_sizes(-1, [d, d, g, g]);
                let channel = times_transposed(channel.silu(), gates.channel_gate);
                (u, z, Some([channel, times_transposed(state.silu(), gates.state_gate)]))
            }
        };
        let conv = ConvInputs {
            u,
            weight: layer.conv_weight,
            state: layer.conv_state,
            bias: Some(layer.conv_bias),
            lengths: None,
        };
        let [u, conv_state] = CausalConv.body(p, conv);
        let [delta, b, c] = times_transposed(u, layer.x_proj).split_sizes(-1, [rank, states, states]);
        let delta = times_transposed(delta, layer.dt_proj);
        let own = Recurrence { u, delta, delta_bias: layer.dt_bias, a: layer.a, b, state: layer.state };
        let [channel_gate, state_gate] = gates.map_or([None; 2], |gates| gates.map(Some));
        let neighbours = below.to_vec();
        let step =
            StepInputs { own, c, skip: layer.skip, z, channel_gate, state_gate, neighbours, projections: Vec::new() };
        let [y, state] = SelectiveStep { neighbours: below.len() }.body(p, step);
        (times_transposed(y, layer.out_proj), [conv_state, state])
    }
}
