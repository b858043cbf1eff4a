//! DenseMamba (arXiv 2403.00818, section 3.3, over Mamba, arXiv 2312.00752, section 3): one layer, both forms.

use crate::{
    form::{Call, Form, embed, head},
    nn::{gate, linear, linear_bias, rms_norm},
    operators::{
        CausalConv, ConvInputs, Neighbour, NeighbourState, Recurrence, ScanInputs, SelectiveScan, SelectiveStep,
        StepInputs,
    },
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
pub(crate) fn model<'g>(p: Scope<'g>, m: &DenseMamba, states: &[StateTensor], call: &Call<'g>) {
    let (x, table) = p.scope("backbone", |p| {
        let (mut x, table) = embed(p, "embeddings", call.tokens, [m.vocab_size, m.hidden_size]);
        let mut neighbours = VecDeque::new(); // nearest first
        for layer in 0..m.num_hidden_layers {
            let own: Vec<&StateTensor> = states.iter().filter(|state| state.layer == layer).collect();
            let [conv @ .., recurrent] = &own[..] else { unreachable!("every layer has a recurrent state") };
            let own = LayerStates { conv: conv.first().copied(), recurrent };
            let hidden = p.scope(&format!("layers.{layer}"), |p| {
                let normed = rms_norm(p, "norm", x, m.layer_norm_epsilon);
                let (out, hidden) = p.scope("mixer", |p| mixer(p, m, normed, neighbours.make_contiguous(), own, call));
                x = x + out;
                hidden
            });
            neighbours.push_front(hidden);
            neighbours.truncate(m.dense_block_layers);
        }
        (rms_norm(p, "norm_f", call.asked_for(x), m.layer_norm_epsilon), table)
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
    call: &Call<'g>,
) -> (Value<'g>, Hidden<'g>) {
    let (d, n, r) = (m.intermediate_size, m.state_size, m.time_step_rank);
    let project = if m.use_bias { linear_bias } else { linear };

    let [u, z] = project(p, "in_proj", x, 2 * d).split(-1);
    let u = conv(p, m, u, states.conv, call);
    let [delta, b, c] = linear(p, "x_proj", u, r + 2 * n).split_sizes(-1, [r, n, n]);
    let delta = linear_bias(p, "dt_proj", delta, d); // softplus is the scan's
    let a = p.weight_as("A_log", [d, n], Prepare::NegExp);
    let skip = p.weight("D", [d]);
    let own = Recurrence { u, delta, a, b, state: call.past(states.recurrent) };

    let (channel_gate, readouts) = if neighbours.is_empty() {
        (None, Vec::new())
    } else {
        p.scope("dense", |p| dense(p, m, x, c, neighbours.len()))
    };
    let read = neighbours.iter().zip(readouts);
    let [y, present] = match call.form {
        Form::Parallel { lengths } => {
            let neighbours = read.map(|(h, readout)| Neighbour { recurrence: h.recurrence, readout }).collect();
            p.call(SelectiveScan, ScanInputs { own, c, skip, z, lengths, channel_gate, neighbours })
        }
        Form::Recurrent => {
            let neighbours = read.map(|(h, readout)| NeighbourState { state: h.present, readout }).collect();
            let Recurrence { u, delta, a, b, state } = own;
            p.call(SelectiveStep, StepInputs { u, delta, a, b, state, c, skip, z, channel_gate, neighbours })
        }
    };
    call.present(states.recurrent, present);
    (project(p, "out_proj", y, m.hidden_size), Hidden { recurrence: own, present })
}

/// `u = silu(causal_conv(u) + bias)`: `[B, T, D] -> [B, T, D]`.
fn conv<'g>(p: Scope<'g>, m: &DenseMamba, u: Value<'g>, state: Option<&StateTensor>, call: &Call<'g>) -> Value<'g> {
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

/// How the neighbours' states are read: the channel gate `[B, T, D]`, and for each the vector `P_iᵀ(state gate ∘ c)`
/// `[B, T, N]`, for `(G ∘ P_i h) c = channel gate ∘ (h · P_iᵀ(state gate ∘ c))`.
fn dense<'g>(
    p: Scope<'g>,
    m: &DenseMamba,
    x: Value<'g>,
    c: Value<'g>,
    neighbours: usize,
) -> (Option<Value<'g>>, Vec<Value<'g>>) {
    let n = m.state_size;
    let channel_gate = m.channel_gate.map(|middle| gate(p, "channel_gate", x, middle, m.intermediate_size));
    let c = m.state_gate.map_or(c, |middle| gate(p, "state_gate", x, middle, n) * c);
    let readouts = (0..neighbours).map(|i| match m.dense_projection {
        Projection::Identity => c,
        Projection::Linear => p.scope(&format!("projections.{i}"), |p| c.matmul(p.weight("weight", [n, n]))),
    });
    (channel_gate, readouts.collect())
}
