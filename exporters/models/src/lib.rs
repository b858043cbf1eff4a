//! DenseMamba and DenseRetNet as ONNX graphs.
//!
//! The one design decision: each model has one layer function, written as the paper writes it, and both graphs
//! (parallel prefill, recurrent stepping) are made by it; they differ in one argument, the `Form` of the call.

#![forbid(unsafe_code)]

mod dense_mamba;
mod dense_retnet;
mod form;
mod mamba;
mod nn;
pub mod operators;
mod positions;

use densessm_graph::{Error, Graph, Model};
use densessm_proto::{Architecture, GraphKind, LogitsMode, Lowering, states};

/// The choices one has in writing a model's graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Version of ONNX's operator set.
    pub opset: i64,
    /// How custom operators are written.
    pub lowering: Lowering,
    /// Which logits the parallel graph returns.
    pub logits: LogitsMode,
}

impl Default for GraphOptions {
    /// Operator set 18, functions, the logits of each row's last token.
    fn default() -> Self {
        Self { opset: 18, lowering: Lowering::Function, logits: LogitsMode::Last }
    }
}

/// The graph of a model.
///
/// # Errors
/// When the operator set is not one the builder knows; any other error is a defect of the model's definition.
pub fn graph(architecture: &Architecture, kind: GraphKind, options: GraphOptions) -> Result<Model, Error> {
    let graph = Graph::new(kind.name(), options.opset, options.lowering)?;
    let states = states::layout(architecture);
    let mut call = form::GraphIo::declare(&graph, kind, options.logits);
    match architecture {
        Architecture::DenseMamba(m) => {
            call.past_states(&states);
            dense_mamba::model(graph.root(), m, &states, &call);
        }
        Architecture::DenseRetNet(m) => {
            let past_length = call.past_length();
            call.past_states(&states);
            dense_retnet::model(graph.root(), m, &states, &call, past_length);
        }
    }
    drop(call);
    graph.finish()
}
