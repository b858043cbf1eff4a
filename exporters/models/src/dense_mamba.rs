//! DenseMamba (arXiv 2403.00818, section 3.3, based on Mamba, arXiv 2312.00752, section 3): one layer, both forms.

use crate::{
    form::GraphIo,
    mamba::{self, Connections, Dimensions, Hidden, LayerStates, conv, out_proj, recurrence, scan, x_proj},
    nn::{joined, linear, linear_bias, vector},
};
use densessm_graph::{Scope, Value};
use densessm_proto::{DenseMamba, Projection, StateTensor};
use std::collections::VecDeque;

/// The whole model: tokens `[B, T]` to logits.
pub(crate) fn model<'g>(p: Scope<'g>, m: &DenseMamba, states: &[StateTensor], call: &GraphIo<'g>) {
    let dimensions = Dimensions {
        vocab_size: m.vocab_size,
        hidden_size: m.hidden_size,
        num_hidden_layers: m.num_hidden_layers,
        intermediate_size: m.intermediate_size,
        state_size: m.state_size,
        conv_kernel: m.conv_kernel,
        time_step_rank: m.time_step_rank,
        use_bias: m.use_bias,
        use_conv_bias: m.use_conv_bias,
        layer_norm_epsilon: m.layer_norm_epsilon,
        tie_word_embeddings: m.tie_word_embeddings,
    };
    let mut neighbours = VecDeque::new(); // nearest first
    mamba::model(p, &dimensions, states, call, |p, x, states| {
        let (out, hidden) = mixer(p, m, &dimensions, x, neighbours.make_contiguous(), states, call);
        neighbours.push_front(hidden);
        neighbours.truncate(m.dense_block_layers);
        out
    });
}

/// One layer: `x [B, T, hidden] -> [B, T, hidden]`, and its hidden states for the layers above.
fn mixer<'g>(
    p: Scope<'g>,
    m: &DenseMamba,
    dimensions: &Dimensions,
    x: Value<'g>,
    neighbours: &[Hidden<'g>],
    states: LayerStates<'_>,
    call: &GraphIo<'g>,
) -> (Value<'g>, Hidden<'g>) {
    let n = m.state_size;
    let Projected { u, z, channel_gate, state_gate } = project(p, m, x, !neighbours.is_empty());
    let u = conv(p, dimensions, u, states, call);
    let [delta, b, c] = x_proj(p, dimensions, u);
    let own = recurrence(p, dimensions, u, delta, b, states.past(call));
    let skip = vector(p, "D", [m.intermediate_size]);
    let projections = match m.dense_projection {
        Projection::Identity => Vec::new(),
        Projection::Linear => p.scope("dense", |p| {
            (0..neighbours.len()).map(|i| vector(p, &format!("projections.{i}.weight"), [n, n])).collect()
        }),
    };
    let connections = Connections { channel_gate, state_gate, neighbours, projections };
    let (y, hidden) = scan(p, own, [c, skip, z], connections, states, call);
    (out_proj(p, dimensions, y), hidden)
}

/// What a layer's input is projected to.
struct Projected<'g> {
    u: Value<'g>,
    z: Value<'g>,
    channel_gate: Option<Value<'g>>,
    state_gate: Option<Value<'g>>,
}

/// `[u, z] = split(x Winᵀ)` and, where there are neighbours, the gates `W₂ silu(W₁ x)` before their last silu. Whatever
/// is multiplied with x is multiplied in one product, unless it has a bias.
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
