//! The decode step of Mamba and DenseMamba as a graph of one operator, [`MambaStep`], for GPUs.

use crate::{
    GraphOptions,
    form::GraphIo,
    nn::{matrix, vector, vector_as},
    operators::{GateInputs, LayerInputs, MambaStep, MambaStepInputs},
};
use densessm_graph::{Error, Graph, Model, Prepare, Scope};
use densessm_proto::{Architecture, DType, DenseMamba, GraphKind, Projection, StateTensor, states};

/// Whether a model has a graph that is one operator: a Mamba or DenseMamba of at least two layers whose only biases are
/// those of the convolution, and whose dense connections have both gates, of one width, and no projections.
pub fn has_step(architecture: &Architecture) -> bool {
    let Architecture::DenseMamba(m) = architecture else { return false };
    let connections = match m.dense_block_layers {
        0 => true,
        _ => gate(m) > 0 && m.channel_gate == m.state_gate && m.dense_projection == Projection::Identity,
    };
    connections && !m.use_bias && m.use_conv_bias && m.conv_kernel > 1 && m.num_hidden_layers > 1
}

/// The graph of a model's decode step as one operator over all weights and states, in half precision. Inputs and outputs
/// are those of the recurrent graph. None if the model has no such graph ([`has_step`]), or the options do not say one
/// half-precision type for both matrices and activations.
///
/// # Errors
/// When the operator set is not one the builder knows; any other error is a defect of the model's definition.
pub fn step_graph(architecture: &Architecture, options: GraphOptions) -> Result<Option<Model>, Error> {
    let half = options.matrices != DType::F32 && options.matrices == options.activations;
    let Architecture::DenseMamba(m) = architecture else { return Ok(None) };
    if !half || !has_step(architecture) {
        return Ok(None);
    }
    let kind = GraphKind::Recurrent;
    let graph = Graph::new("step", options.opset, options.lowering)?;
    let states = states::layout(architecture);
    let mut call = GraphIo::declare(&graph, kind, options.logits, options.activations);
    call.past_states(&states);
    model(graph.root().with_weights_in(options.matrices), m, &states, &call);
    drop(call);
    graph.finish().map(Some)
}

/// G: middle width of each gate; 0 without gates.
fn gate(m: &DenseMamba) -> usize {
    m.channel_gate.filter(|_| m.dense_block_layers > 0).unwrap_or(0)
}

fn model<'g>(p: Scope<'g>, m: &DenseMamba, states: &[StateTensor], call: &GraphIo<'g>) {
    let size = [m.vocab_size, m.hidden_size];
    let (embedding, layers, norm) = p.scope("backbone", |p| {
        let embedding = p.scope("embeddings", |p| p.weight("weight", size));
        let layer = |layer: usize| p.scope(&format!("layers.{layer}"), |p| self::layer(p, m, layer, states, call));
        let layers: Vec<_> = (0..m.num_hidden_layers).map(layer).collect();
        (embedding, layers, p.scope("norm_f", |p| vector(p, "weight", [m.hidden_size])))
    });
    let head = if m.tie_word_embeddings { embedding } else { p.scope("lm_head", |p| matrix(p, &[("weight", size)])) };
    let mut layers = layers.into_iter();
    let Some((first, _)) = layers.next() else { return };
    let (upper, gates): (Vec<_>, Vec<_>) = layers.unzip();
    let operator = MambaStep {
        upper_layers: upper.len(),
        neighbours: m.dense_block_layers,
        channels: m.intermediate_size,
        gate: gate(m),
        epsilon: m.layer_norm_epsilon as f32,
    };
    let gates = gates.into_iter().flatten().collect();
    let inputs = MambaStepInputs { tokens: call.tokens, embedding, norm, head, first, upper, gates };
    let (logits, results) = p.call(operator, inputs);
    for (state, value) in states.iter().zip(results.into_iter().flatten()) {
        call.present(state, value);
    }
    call.outputs(logits);
}

/// The weights and states of a layer; its gates where it reads layers below.
fn layer<'g>(
    p: Scope<'g>,
    m: &DenseMamba,
    layer: usize,
    states: &[StateTensor],
    call: &GraphIo<'g>,
) -> (LayerInputs<'g>, Option<GateInputs<'g>>) {
    let (h, d, n, r) = (m.hidden_size, m.intermediate_size, m.state_size, m.time_step_rank);
    let norm = p.scope("norm", |p| vector(p, "weight", [h]));
    let own = &states[2 * layer..];
    p.scope("mixer", |p| {
        let middle = gate(m);
        let gated = layer > 0 && middle > 0;
        let input = ("in_proj.weight", [2 * d, h]);
        let middles = ["dense.channel_gate.fc1.weight", "dense.state_gate.fc1.weight"].map(|name| (name, [middle, h]));
        let rows: Vec<_> = std::iter::once(input).chain(middles.into_iter().filter(|_| gated)).collect();
        let one = |name: &str, shape: [usize; 2]| matrix(p, &[(name, shape)]);
        let inputs = LayerInputs {
            norm,
            in_proj: matrix(p, &rows),
            conv_weight: vector_as(p, "conv1d.weight", [d, 1, m.conv_kernel], Prepare::Taps),
            conv_bias: vector(p, "conv1d.bias", [d]),
            x_proj: one("x_proj.weight", [r + 2 * n, d]),
            dt_proj: one("dt_proj.weight", [d, r]),
            dt_bias: vector(p, "dt_proj.bias", [d]),
            a: vector_as(p, "A_log", [d, n], Prepare::NegExp),
            skip: vector(p, "D", [d]),
            out_proj: one("out_proj.weight", [h, d]),
            conv_state: call.past(&own[0]),
            state: call.past(&own[1]),
        };
        let gates = gated.then(|| GateInputs {
            channel_gate: one("dense.channel_gate.fc2.weight", [d, middle]),
            state_gate: one("dense.state_gate.fc2.weight", [n, middle]),
        });
        (inputs, gates)
    })
}
