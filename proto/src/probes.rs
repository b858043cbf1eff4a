//! Probes: the values inside the graphs that are compared with the reference implementation, stated once.
//!
//! Each probe joins a name in the checkpoint's words, under which the reference reports the value, with the name that
//! the value has in a graph, and with its layout. A test of the model definitions shows that both graphs of every
//! configuration hold all of them.

use crate::{Architecture, GraphKind, Lowering, Precision, StateTensor, operators::Schema, states};

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

/// Returns the probes of a graph with fp32 activations in the order of computation.
///
/// With [`Lowering::Inline`] the custom operators are no nodes, so that their own results have no names to probe; what
/// follows them does.
pub fn probes(architecture: &Architecture, kind: GraphKind, lowering: Lowering, precision: Precision) -> Vec<Probe> {
    let states = states::layout(architecture);
    let mut list = ProbeList { kind, lowering, precision, states, probes: Vec::new() };
    architecture.family().probes(&mut list);
    list.probes
}

/// The probes of a graph while they are listed.
#[derive(Debug)]
pub struct ProbeList {
    kind: GraphKind,
    lowering: Lowering,
    precision: Precision,
    states: Vec<StateTensor>,
    probes: Vec<Probe>,
}

impl ProbeList {
    fn add(&mut self, layer: Option<usize>, name: &str, value: &str, layout: ProbeLayout) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.probes.push(Probe { name, layer, is_layer_output: false, value, layout });
    }

    /// The embedding of each token, looked up in the scope `parent`.
    pub(crate) fn embeddings(&mut self, name: &str, parent: &str, width: usize) {
        // Rows of a table in half precision are cast.
        let op = if self.precision == Precision::Fp32 { "Gather" } else { "Cast" };
        self.add(None, name, &format!("{parent}/{op}"), ProbeLayout::Tokens { width });
    }

    /// One vector per position whose logits are returned.
    pub(crate) fn positions(&mut self, name: &str, value: &str, width: usize) {
        self.add(None, name, value, ProbeLayout::Positions { width });
    }

    /// Layer `index` of the checkpoint's module `parent`.
    pub(crate) fn layer(&mut self, parent: &str, index: usize) -> LayerProbes<'_> {
        LayerProbes {
            name: format!("{parent}.layers.{index}"),
            scope: format!("{parent}/layers/{index}"),
            index,
            list: self,
        }
    }
}

/// The probes of one layer while they are listed; names are relative to the layer's.
#[derive(Debug)]
pub struct LayerProbes<'t> {
    list: &'t mut ProbeList,
    pub(crate) index: usize,
    name: String,
    scope: String,
}

impl LayerProbes<'_> {
    /// The name of one of two operators, depending on the graph.
    pub(crate) fn by_kind(&self, parallel: &Schema, recurrent: &Schema) -> &'static str {
        match self.list.kind {
            GraphKind::Parallel => parallel.name,
            GraphKind::Recurrent => recurrent.name,
        }
    }

    /// One vector per token.
    pub(crate) fn tokens(&mut self, name: &str, value: &str, width: usize) {
        let (name, value) = (format!("{}.{name}", self.name), format!("{}/{value}", self.scope));
        self.list.add(Some(self.index), &name, &value, ProbeLayout::Tokens { width });
    }

    /// A custom operator's own result.
    pub(crate) fn operator(&mut self, name: &str, value: &str, width: usize) {
        if self.list.lowering == Lowering::Function {
            self.tokens(name, value, width);
        }
    }

    /// The layer's state whose name ends in `kind`.
    pub(crate) fn state(&mut self, kind: &str) {
        let state = self.list.states.iter().find(|state| state.layer == self.index && state.past.ends_with(kind));
        if let Some(StateTensor { past, present, shape, .. }) = state.cloned() {
            self.list.add(Some(self.index), &past, &present, ProbeLayout::State { shape });
        }
    }

    /// The residual stream after the layer.
    pub(crate) fn output(&mut self, width: usize) {
        let (name, value) = (self.name.clone(), format!("{}/Add", self.scope));
        let layout = ProbeLayout::Tokens { width };
        self.list.probes.push(Probe { name, layer: Some(self.index), is_layer_output: true, value, layout });
    }
}
