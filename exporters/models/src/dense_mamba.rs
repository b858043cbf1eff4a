//! DenseMamba (arXiv 2403.00818, section 3.3, over Mamba, arXiv 2312.00752, section 3): one layer, both forms.

use crate::{
    form::{Form, GraphIo, embed, head},
    nn::{joined, linear, linear_bias, norm},
    operators::{CausalConv, ConvInputs, Recurrence, ScanInputs, SelectiveScan, SelectiveStep, StepInputs},
};
use densessm_graph::{Prepare, Scope, Value};
use densessm_proto::{DenseMamba, Projection, StateTensor};
use std::collections::VecDeque;

/// What a layer leaves for those above it: its hidden states, as a recurrence over the call or as they now are.
#[derive(Clone, Copy)]
struct Hidden<'g> {
    recurrence: Recurrence<'g>,
    present: Value<'g>,
}

/// A layer's states: the convolution's last inputs (none when it has one tap) and the recurrence's.
#[derive(Clone, Copy)]
struct LayerStates<'a> {
    conv: Option<&'a StateTensor>,
    recurrent: &'a StateTensor,
}

/// The whole model: tokens `[B, T]` to logits.
pub(crate) fn model<'g>(p: Scope<'g>, m: &DenseMamba, states: &[StateTensor], call: &GraphIo<'g>) {
    let (x, table) = p.scope("backbone", |p| {
        let (mut x, table) = embed(p, "embeddings", call.tokens, [m.vocab_size, m.hidden_size]);
        let mut neighbours = VecDeque::new(); // nearest first
        for layer in 0..m.num_hidden_layers {
            let own: Vec<&StateTensor> = states.iter().filter(|state| state.layer == layer).collect();
            let [conv @ .., recurrent] = &own[..] else { unreachable!("every layer has a recurrent state") };
            let own = LayerStates { conv: conv.first().copied(), recurrent };
            let hidden = p.scope(&format!("layers.{layer}"), |p| {
                let normed = norm(p, "norm", x, m.layer_norm_epsilon);
                let (out, hidden) = p.scope("mixer", |p| mixer(p, m, normed, neighbours.make_contiguous(), own, call));
                x = x + out;
                hidden
            });
            neighbours.push_front(hidden);
            neighbours.truncate(m.dense_block_layers);
        }
        (norm(p, "norm_f", call.select_positions(x), m.layer_norm_epsilon), table)
    });
    call.finish(head(p, x, table, m.tie_word_embeddings));
}

/// One layer: `x [B, T, hidden] -> [B, T, hidden]`, and its hidden states for the layers above.
fn mixer<'g>(
    p: Scope<'g>,
    m: &DenseMamba,
    x: Value<'g>,
    neighbours: &[Hidden<'g>],
    states: LayerStates<'_>,
    call: &GraphIo<'g>,
) -> (Value<'g>, Hidden<'g>) {
    let (d, n, r) = (m.intermediate_size, m.state_size, m.time_step_rank);

    let Projected { u, z, channel_gate, state_gate } = project(p, m, x, !neighbours.is_empty());
    let u = conv(p, m, u, states.conv, call);
    let [delta, b, c] = linear(p, "x_proj", u, r + 2 * n).split_sizes(-1, [r, n, n]);
    let (delta, delta_bias) = p.scope("dt_proj", |p| {
        (delta.matmul(p.weight_t("weight", [d, r])), p.weight("bias", [d])) // bias and softplus are the scan's
    });
    let a = p.weight_as("A_log", [d, n], Prepare::NegExp);
    let skip = p.weight("D", [d]);
    let own = Recurrence { u, delta, delta_bias, a, b, state: call.past(states.recurrent) };
    let projections = match m.dense_projection {
        Projection::Identity => Vec::new(),
        Projection::Linear => p.scope("dense", |p| {
            (0..neighbours.len()).map(|i| p.weight(&format!("projections.{i}.weight"), [n, n])).collect()
        }),
    };

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
    let out = if m.use_bias { linear_bias } else { linear }(p, "out_proj", y, m.hidden_size);
    (out, Hidden { recurrence: own, present })
}

/// What a layer's input is projected to.
struct Projected<'g> {
    u: Value<'g>,
    z: Value<'g>,
    channel_gate: Option<Value<'g>>,
    state_gate: Option<Value<'g>>,
}

/// `[u, z] = split(x Winᵀ)` and, where there are neighbours, the gates `W₂ silu(W₁ x)` before their last silu. All that
/// is multiplied with x is so in one product, unless it has a bias.
fn project<'g>(p: Scope<'g>, m: &DenseMamba, x: Value<'g>, gated: bool) -> Projected<'g> {
    let (d, n) = (m.intermediate_size, m.state_size);
    let [channel, state] = [m.channel_gate, m.state_gate].map(|middle| middle.filter(|_| gated));
    let gates = [("dense.channel_gate.fc1", channel), ("dense.state_gate.fc1", state)];
    let gates = gates.into_iter().filter_map(|(name, middle)| Some((name, vec![middle?])));
    let products = if m.use_bias {
        let input = linear_bias(p, "in_proj", x, 2 * d).split_into(-1, &[d, d]);
        input.into_iter().chain(gates.map(|(name, middle)| linear(p, name, x, middle[0]))).collect()
    } else {
        joined(p, x, &std::iter::once(("in_proj", vec![d, d])).chain(gates).collect::<Vec<_>>())
    };
    let [u, z, middles @ ..] = &products[..] else { unreachable!("a product has its parts") };
    let mut middles = middles.iter();
    let mut gate = |name: &str, middle: Option<usize>, d_out: usize| {
        middle.and_then(|_| middles.next()).map(|middle| linear(p, name, middle.silu(), d_out))
    };
    let channel_gate = gate("dense.channel_gate.fc2", channel, d);
    Projected { u: *u, z: *z, channel_gate, state_gate: gate("dense.state_gate.fc2", state, n) }
}

/// `u = silu(causal_conv(u) + bias)`: `[B, T, D] -> [B, T, D]`.
fn conv<'g>(p: Scope<'g>, m: &DenseMamba, u: Value<'g>, state: Option<&StateTensor>, call: &GraphIo<'g>) -> Value<'g> {
    let (weight, bias) = p.scope("conv1d", |p| {
        let weight = p.weight_as("weight", [m.intermediate_size, 1, m.conv_kernel], Prepare::Taps);
        (weight, m.use_conv_bias.then(|| p.weight("bias", [m.intermediate_size])))
    });
    let Some(state) = state else {
        let u = u * weight; // one tap looks back at nothing
        return bias.map_or(u, |bias| u + bias).silu();
    };
    let lengths = match call.form {
        Form::Parallel { lengths } => Some(lengths),
        Form::Recurrent => None,
    };
    let [u, present] = p.call(CausalConv, ConvInputs { u, weight, state: call.past(state), bias, lengths });
    call.present(state, present);
    u
}
