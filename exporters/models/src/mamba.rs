//! What Mamba's relatives have in common (arXiv 2312.00752, section 3): the backbone, and the pieces of a mixer.
//!
//! A family's own file composes its layer of the pieces and adds what only that family has.

use crate::{
    form::{Form, GraphIo, embed, head},
    nn::{linear, linear_bias, norm, times, vector, vector_as},
    operators::{CausalConv, ConvInputs, Recurrence, ScanInputs, SelectiveScan, SelectiveStep, StepInputs},
};
use densessm_graph::{DType, Prepare, Scope, Value};
use densessm_proto::StateTensor;

/// The dimensions that these pieces need, whatever the family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dimensions {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    /// D: channels of the scan.
    pub(crate) intermediate_size: usize,
    /// N: states per channel.
    pub(crate) state_size: usize,
    /// K: taps of the causal convolution.
    pub(crate) conv_kernel: usize,
    /// R: width of the bottleneck from which the step sizes are computed.
    pub(crate) time_step_rank: usize,
    pub(crate) use_bias: bool,
    pub(crate) use_conv_bias: bool,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) tie_word_embeddings: bool,
}

/// A layer's states: the convolution's last inputs (none when it has one tap) and the recurrence's.
#[derive(Clone, Copy)]
pub(crate) struct LayerStates<'a> {
    conv: Option<&'a StateTensor>,
    recurrent: &'a StateTensor,
}

impl LayerStates<'_> {
    /// The hidden states before this call: `[B, D, N]`.
    pub(crate) fn past<'g>(&self, call: &GraphIo<'g>) -> Value<'g> {
        call.past(self.recurrent)
    }
}

/// A layer's hidden states, for the layers above: as a recurrence over the call, or as they are after its one token.
#[derive(Clone, Copy)]
pub(crate) struct Hidden<'g> {
    recurrence: Recurrence<'g>,
    present: Value<'g>,
}

/// A layer's dense connections to those below (arXiv 2403.00818, section 3.3); by default there are none.
#[derive(Default)]
pub(crate) struct Connections<'a, 'g> {
    /// Channels' gate before silu `[B, T, D]`.
    pub(crate) channel_gate: Option<Value<'g>>,
    /// States' gate before silu `[B, T, N]`.
    pub(crate) state_gate: Option<Value<'g>>,
    /// The layers that are read, nearest first.
    pub(crate) neighbours: &'a [Hidden<'g>],
    /// Their projections `[N, N]`; identities if there are none.
    pub(crate) projections: Vec<Value<'g>>,
}

/// The whole model: tokens `[B, T]` to logits. `mixer` is the family's layer without its norm and residual,
/// `[B, T, hidden] -> [B, T, hidden]`, on activations; it is called for each layer in order.
pub(crate) fn model<'g>(
    p: Scope<'g>,
    m: &Dimensions,
    states: &[StateTensor],
    call: &GraphIo<'g>,
    mut mixer: impl FnMut(Scope<'g>, Value<'g>, LayerStates<'_>) -> Value<'g>,
) {
    let (x, table) = p.scope("backbone", |p| {
        let (mut x, table) = embed(p, "embeddings", call.tokens, [m.vocab_size, m.hidden_size]);
        for layer in 0..m.num_hidden_layers {
            let own: Vec<&StateTensor> = states.iter().filter(|state| state.layer == layer).collect();
            let [conv @ .., recurrent] = &own[..] else { unreachable!("every layer has a recurrent state") };
            let own = LayerStates { conv: conv.first().copied(), recurrent };
            p.scope(&format!("layers.{layer}"), |p| {
                let normed = norm(p, "norm", x, m.layer_norm_epsilon).cast(call.activations);
                x = x + p.scope("mixer", |p| mixer(p, normed, own)).cast(DType::F32);
            });
        }
        (norm(p, "norm_f", call.select_positions(x), m.layer_norm_epsilon), table)
    });
    call.finish(head(p, x.cast(call.activations), table, m.tie_word_embeddings));
}

/// `[δ, b, c] = split(u Wxᵀ)`: `[B, T, D] -> [B, T, R], [B, T, N], [B, T, N]`.
pub(crate) fn x_proj<'g>(p: Scope<'g>, m: &Dimensions, u: Value<'g>) -> [Value<'g>; 3] {
    let (n, r) = (m.state_size, m.time_step_rank);
    linear(p, "x_proj", u, r + 2 * n).split_sizes(-1, [r, n, n])
}

/// `h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ` with `Δ = softplus(δ Wdtᵀ + dt_bias)`, `a = -exp(A_log)`.
pub(crate) fn recurrence<'g>(
    p: Scope<'g>,
    m: &Dimensions,
    u: Value<'g>,
    delta: Value<'g>,
    b: Value<'g>,
    state: Value<'g>,
) -> Recurrence<'g> {
    let (d, n, r) = (m.intermediate_size, m.state_size, m.time_step_rank);
    let (delta, delta_bias) = p.scope("dt_proj", |p| {
        (times(p, delta, &[("weight", [d, r])]), vector(p, "bias", [d])) // bias and softplus are the scan's
    });
    let a = vector_as(p, "A_log", [d, n], Prepare::NegExp);
    Recurrence { u, delta, delta_bias, a, b, state }
}

/// `y_t = (ĥ_t c_t + D ∘ u_t) ∘ silu(z_t)`, `ĥ` being the layer's hidden states with those of its connections.
///
/// Returns y `[B, T, D]` and the hidden states, which it also emits for the next call.
pub(crate) fn scan<'g>(
    p: Scope<'g>,
    own: Recurrence<'g>,
    [c, skip, z]: [Value<'g>; 3],
    connections: Connections<'_, 'g>,
    states: LayerStates<'_>,
    call: &GraphIo<'g>,
) -> (Value<'g>, Hidden<'g>) {
    let Connections { channel_gate, state_gate, neighbours, projections } = connections;
    let count = neighbours.len();
    let [y, present] = match call.form {
        Form::Parallel { lengths } => {
            let neighbours = neighbours.iter().map(|hidden| hidden.recurrence).collect();
            let inputs = ScanInputs { own, c, skip, z, lengths, channel_gate, state_gate, neighbours, projections };
            p.call(SelectiveScan { neighbours: count }, inputs)
        }
        Form::Recurrent => {
            let neighbours = neighbours.iter().map(|hidden| hidden.present).collect();
            let inputs = StepInputs { own, c, skip, z, channel_gate, state_gate, neighbours, projections };
            p.call(SelectiveStep { neighbours: count }, inputs)
        }
    };
    call.present(states.recurrent, present);
    (y, Hidden { recurrence: own, present })
}

/// `u = silu(causal_conv(u) + bias)`: `[B, T, D] -> [B, T, D]`.
pub(crate) fn conv<'g>(
    p: Scope<'g>,
    m: &Dimensions,
    u: Value<'g>,
    states: LayerStates<'_>,
    call: &GraphIo<'g>,
) -> Value<'g> {
    let (weight, bias) = p.scope("conv1d", |p| {
        let weight = vector_as(p, "weight", [m.intermediate_size, 1, m.conv_kernel], Prepare::Taps);
        (weight, m.use_conv_bias.then(|| vector(p, "bias", [m.intermediate_size])))
    });
    let Some(state) = states.conv else {
        let y = u.cast(DType::F32) * weight; // one tap reads the current token only
        return bias.map_or(y, |bias| y + bias).silu().cast(u.dtype());
    };
    let lengths = match call.form {
        Form::Parallel { lengths } => Some(lengths),
        Form::Recurrent => None,
    };
    let [u, present] = p.call(CausalConv, ConvInputs { u, weight, state: call.past(state), bias, lengths });
    call.present(state, present);
    u
}

/// `y Woutᵀ`: `[B, T, D] -> [B, T, hidden]`.
pub(crate) fn out_proj<'g>(p: Scope<'g>, m: &Dimensions, y: Value<'g>) -> Value<'g> {
    let linear = if m.use_bias { linear_bias } else { linear };
    linear(p, "out_proj", y, m.hidden_size)
}
