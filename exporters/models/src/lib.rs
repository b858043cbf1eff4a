//! The models as ONNX graphs.
//!
//! The one design decision: each family has one layer function, written as its paper writes it, and both graphs
//! (parallel prefill, recurrent stepping) are made by it; they differ in one argument, the `Form` of the call.

#![forbid(unsafe_code)]

mod dense_mamba;
mod dense_retnet;
mod falcon_mamba;
mod form;
mod mamba;
mod nn;
pub mod operators;
mod positions;
mod step;

pub use step::{has_step, step_graph};

use densessm_graph::{Error, Graph, Model};
use densessm_proto::{Architecture, DType, GraphKind, LogitsMode, Lowering, states};

/// How a model's graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GraphOptions {
    /// Version of ONNX's operator set.
    pub opset: i64,
    /// How custom operators are written.
    pub lowering: Lowering,
    /// Which logits the parallel graph returns.
    pub logits: LogitsMode,
    /// Element type that matrices are stored in. In half precision they have the checkpoint's layout `[out, in]`; all
    /// other weights are fp32 regardless.
    pub matrices: DType,
    /// Element type of what products and custom operators take and return. The residual stream, norms, positions,
    /// states and logits are fp32 regardless.
    pub activations: DType,
}

impl Default for GraphOptions {
    /// Operator set 18, functions, the logits of each row's last token, everything in fp32.
    fn default() -> Self {
        Self {
            opset: 18,
            lowering: Lowering::Function,
            logits: LogitsMode::Last,
            matrices: DType::F32,
            activations: DType::F32,
        }
    }
}

impl GraphOptions {
    /// The same options with another operator set.
    #[must_use]
    pub fn with_opset(self, opset: i64) -> Self {
        Self { opset, ..self }
    }

    /// The same options with another lowering.
    #[must_use]
    pub fn with_lowering(self, lowering: Lowering) -> Self {
        Self { lowering, ..self }
    }

    /// The same options with other logits.
    #[must_use]
    pub fn with_logits(self, logits: LogitsMode) -> Self {
        Self { logits, ..self }
    }

    /// The same options with matrices stored in another type.
    #[must_use]
    pub fn with_matrices(self, matrices: DType) -> Self {
        Self { matrices, ..self }
    }

    /// The same options with activations of another type.
    #[must_use]
    pub fn with_activations(self, activations: DType) -> Self {
        Self { activations, ..self }
    }
}

/// The graph of a model.
///
/// # Errors
/// When the operator set is not one the builder knows; any other error is a defect of the model's definition.
///
/// # Examples
/// ```
/// use densessm_models::{GraphOptions, graph};
/// use densessm_proto::{Architecture, DenseMamba, GraphKind, Projection};
///
/// let mamba = Architecture::DenseMamba(DenseMamba {
///     vocab_size: 97,
///     hidden_size: 64,
///     num_hidden_layers: 4,
///     intermediate_size: 128,
///     state_size: 16,
///     conv_kernel: 4,
///     time_step_rank: 4,
///     use_bias: false,
///     use_conv_bias: true,
///     layer_norm_epsilon: 1e-5,
///     tie_word_embeddings: true,
///     dense_block_layers: 0,
///     channel_gate: None,
///     state_gate: None,
///     dense_projection: Projection::Identity,
/// });
/// let model = graph(&mamba, GraphKind::Recurrent, GraphOptions::default())?;
/// assert_eq!(model.inputs().next().map(|(name, _)| name), Some("input_ids"));
/// # Ok::<(), densessm_graph::Error>(())
/// ```
pub fn graph(architecture: &Architecture, kind: GraphKind, options: GraphOptions) -> Result<Model, Error> {
    let graph = Graph::new(kind.name(), options.opset, options.lowering)?;
    let states = states::layout(architecture);
    let mut call = form::GraphIo::declare(&graph, kind, options.logits, options.activations);
    let root = graph.root().with_weights_in(options.matrices);
    match architecture {
        Architecture::DenseMamba(m) => {
            call.past_states(&states);
            dense_mamba::model(root, m, &states, &call);
        }
        Architecture::FalconMamba(m) => {
            call.past_states(&states);
            falcon_mamba::model(root, m, &states, &call);
        }
        Architecture::DenseRetNet(m) => {
            let past_length = call.past_length();
            call.past_states(&states);
            dense_retnet::model(root, m, &states, &call, past_length);
        }
    }
    drop(call);
    graph.finish()
}
