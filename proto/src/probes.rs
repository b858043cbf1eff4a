//! Probes: the values inside the graphs that are compared with the reference implementation, stated once.
//!
//! Each probe joins a name in the checkpoint's words, under which the reference reports the value, with the name that
//! the value has in a graph, and with its layout. A test of the model definitions shows that both graphs of every
//! configuration hold all of them.

use crate::{
    Architecture, DenseMamba, DenseRetNet, GraphKind, Lowering, StateTensor,
    operators::{CAUSAL_CONV, DENSE_NORM, RETENTION, RETENTION_STEP, SELECTIVE_SCAN, SELECTIVE_STEP},
    states::{self, LOGITS},
};

/// A value inside a graph and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// The name under which the reference reports the value: the path of a module in the checkpoint
    /// (`backbone.layers.3.mixer.x_proj`), `logits`, or the name of a state's input.
    pub name: String,
    /// The layer that computes the value, from 0; none for what precedes and follows the layers.
    pub layer: Option<usize>,
    /// Whether the value is the layer's output, the residual stream after it.
    pub is_layer_output: bool,
    /// The name of the value in the graph.
    pub value: String,
    /// The layout of the value in the graph.
    pub layout: ProbeLayout,
}

/// The axes of a probed value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeLayout {
    /// One vector per token: `[batch, time, width]`.
    Tokens {
        /// Elements of a vector.
        width: usize,
    },
    /// One vector per position whose logits the graph returns, either all tokens of a row or its last valid one:
    /// `[batch, positions, width]`, or the same with the first two axes joined.
    Positions {
        /// Elements of a vector.
        width: usize,
    },
    /// The state after the call: `[batch, …]`.
    State {
        /// The shape of one sequence's state.
        shape: Vec<usize>,
    },
}

/// Returns the probes of a graph in the order of computation.
///
/// With [`Lowering::Inline`] the custom operators are no nodes, so that their own results have no names to probe; what
/// follows them does.
pub fn probes(architecture: &Architecture, kind: GraphKind, lowering: Lowering) -> Vec<Probe> {
    let mut list = ProbeList { kind, lowering, states: states::layout(architecture), probes: Vec::new() };
    match architecture {
        Architecture::DenseMamba(m) => dense_mamba(m, &mut list),
        Architecture::DenseRetNet(m) => dense_retnet(m, &mut list),
    }
    list.probes
}

fn dense_mamba(m: &DenseMamba, list: &mut ProbeList) {
    let (hidden, channels) = (m.hidden_size, m.intermediate_size);
    list.tokens("backbone.embeddings", "backbone/Gather", hidden);
    for layer in 0..m.num_hidden_layers {
        let mut layer = list.layer("backbone", layer);
        layer.tokens("norm", "norm/Mul", hidden);
        // A convolution of one tap is no operator: it is multiplied into the scan's input.
        if m.conv_kernel > 1 {
            layer.operator("mixer.conv1d", &format!("mixer/{CAUSAL_CONV}.0"), channels);
            layer.state("conv_state");
        }
        layer.tokens("mixer.x_proj", "mixer/x_proj/MatMul", m.time_step_rank + 2 * m.state_size);
        layer.tokens("mixer.dt_proj", "mixer/dt_proj/MatMul", channels);
        if m.neighbours(layer.index).next().is_some() {
            let gates = [("channel_gate", m.channel_gate, channels), ("state_gate", m.state_gate, m.state_size)];
            for (gate, _, width) in gates.into_iter().filter(|(_, middle, _)| middle.is_some()) {
                layer.tokens(&format!("mixer.dense.{gate}"), &format!("mixer/dense/{gate}/fc2/MatMul"), width);
            }
        }
        layer.state("recurrent_state");
        let scan = layer.by_kind(SELECTIVE_SCAN, SELECTIVE_STEP);
        layer.operator("mixer.scan", &format!("mixer/{scan}.0"), channels);
        layer.tokens("mixer.out_proj", if m.use_bias { "mixer/out_proj/Add" } else { "mixer/out_proj/MatMul" }, hidden);
        layer.output(hidden);
    }
    list.positions("backbone.norm_f", "backbone/norm_f/Mul", hidden);
    list.positions(LOGITS, LOGITS, m.vocab_size);
}

fn dense_retnet(m: &DenseRetNet, list: &mut ProbeList) {
    let (hidden, keys, values) = (m.hidden_size, m.query_key_dim, m.value_dim);
    list.tokens("model.embed_tokens", "model/Gather", hidden);
    for layer in 0..m.num_hidden_layers {
        let mut layer = list.layer("model", layer);
        layer.tokens("input_layernorm", "input_layernorm/Mul", hidden);
        layer.tokens("self_attn.q_proj", "self_attn/Split.0", keys);
        layer.tokens("self_attn.k_proj", "self_attn/Mul_1", keys);
        // Layer 0 has neither gates nor norms for the layers below.
        if layer.index > 0 {
            let gated = m.neighbours(layer.index).next().is_some();
            fused(&mut layer, "k", DENSE_NORM, keys, gated);
            fused(&mut layer, "v", &format!("{DENSE_NORM}_1"), values, gated);
        }
        layer.state("recurrent_state");
        let retention = layer.by_kind(RETENTION, RETENTION_STEP);
        layer.operator("self_attn.retention", &format!("self_attn/{retention}.0"), values);
        layer.tokens("self_attn.to_out.0", "self_attn/to_out/0/MatMul", hidden);
        layer.output(hidden);
    }
    list.positions("model.norm", "model/norm/Mul", hidden);
    list.positions(LOGITS, LOGITS, m.vocab_size);
}

/// A DenseRetNet layer's keys (`k`) or values (`v`) with those of the layers below, through a gate and a norm.
fn fused(layer: &mut LayerProbes<'_>, side: &str, operator: &str, width: usize, gated: bool) {
    let norm = format!("self_attn.{side}_norm");
    if gated {
        let value = format!("self_attn/{side}_select/fc2/MatMul");
        layer.tokens(&format!("self_attn.{side}_select.fc2"), &value, width);
        layer.operator(&norm, &format!("self_attn/{operator}"), width);
    } else {
        layer.tokens(&norm, &format!("self_attn/{side}_norm/Mul"), width);
    }
}

/// The probes of a graph while they are listed.
struct ProbeList {
    kind: GraphKind,
    lowering: Lowering,
    states: Vec<StateTensor>,
    probes: Vec<Probe>,
}

impl ProbeList {
    fn add(&mut self, layer: Option<usize>, name: &str, value: &str, layout: ProbeLayout) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.probes.push(Probe { name, layer, is_layer_output: false, value, layout });
    }

    /// One vector per token.
    fn tokens(&mut self, name: &str, value: &str, width: usize) {
        self.add(None, name, value, ProbeLayout::Tokens { width });
    }

    /// One vector per position whose logits are returned.
    fn positions(&mut self, name: &str, value: &str, width: usize) {
        self.add(None, name, value, ProbeLayout::Positions { width });
    }

    /// Layer `index` of the checkpoint's module `parent`.
    fn layer(&mut self, parent: &str, index: usize) -> LayerProbes<'_> {
        LayerProbes {
            name: format!("{parent}.layers.{index}"),
            scope: format!("{parent}/layers/{index}"),
            index,
            list: self,
        }
    }
}

/// The probes of one layer while they are listed; names are relative to the layer's.
struct LayerProbes<'t> {
    list: &'t mut ProbeList,
    index: usize,
    name: String,
    scope: String,
}

impl LayerProbes<'_> {
    /// One of two names, as the graph's kind says.
    fn by_kind(&self, parallel: &'static str, recurrent: &'static str) -> &'static str {
        match self.list.kind {
            GraphKind::Parallel => parallel,
            GraphKind::Recurrent => recurrent,
        }
    }

    /// One vector per token.
    fn tokens(&mut self, name: &str, value: &str, width: usize) {
        let (name, value) = (format!("{}.{name}", self.name), format!("{}/{value}", self.scope));
        self.list.add(Some(self.index), &name, &value, ProbeLayout::Tokens { width });
    }

    /// A custom operator's own result.
    fn operator(&mut self, name: &str, value: &str, width: usize) {
        if self.list.lowering == Lowering::Function {
            self.tokens(name, value, width);
        }
    }

    /// The layer's state whose name ends in `kind`.
    fn state(&mut self, kind: &str) {
        let state = self.list.states.iter().find(|state| state.layer == self.index && state.past.ends_with(kind));
        if let Some(StateTensor { past, present, shape, .. }) = state.cloned() {
            self.list.add(Some(self.index), &past, &present, ProbeLayout::State { shape });
        }
    }

    /// The residual stream after the layer.
    fn output(&mut self, width: usize) {
        let (name, value) = (self.name.clone(), format!("{}/Add", self.scope));
        let layout = ProbeLayout::Tokens { width };
        self.list.probes.push(Probe { name, layer: Some(self.index), is_layer_output: true, value, layout });
    }
}
