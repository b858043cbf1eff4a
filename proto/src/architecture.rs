//! The dimensions of the two model families, as one checked value.
//!
//! Field names are those of the checkpoints' `config.json`. A value of these types has been validated: sizes are at
//! least 1, heads divide, gate widths are those of the tensors.

use serde::{Deserialize, Serialize};

/// A model's family with its dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Architecture {
    /// Mamba with dense hidden-state connections; plain Mamba is its case `dense_block_layers` = 0.
    DenseMamba(DenseMamba),
    /// Gated-attention-unit RetNet with dense key and value connections.
    #[serde(rename = "dense_retnet")]
    DenseRetNet(DenseRetNet),
}

/// Dimensions of a DenseMamba (arXiv 2403.00818, section 3.3, over arXiv 2312.00752).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseMamba {
    /// Number of tokens the embedding knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// D: channels of the scan.
    pub intermediate_size: usize,
    /// N: states per channel.
    pub state_size: usize,
    /// K: taps of the causal convolution.
    pub conv_kernel: usize,
    /// R: width of the bottleneck from which delta is made.
    pub time_step_rank: usize,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub use_bias: bool,
    /// Whether `conv1d` has a bias.
    pub use_conv_bias: bool,
    /// Epsilon of the root-mean-square norms.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// m: how many layers below are read; 0 is plain Mamba.
    pub dense_block_layers: usize,
    /// Middle width of the channel gate's perceptron, if there is such a gate.
    pub channel_gate: Option<usize>,
    /// Middle width of the state gate's perceptron, if there is such a gate.
    pub state_gate: Option<usize>,
    /// How a neighbour's state is projected.
    pub dense_projection: Projection,
}

/// How a neighbour's hidden state is projected before it is gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// As it is.
    Identity,
    /// By a matrix `[N, N]` over the state axis.
    Linear,
}

/// Dimensions of a DenseRetNet (arXiv 2403.00818, section 3.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseRetNet {
    /// Number of tokens the embedding knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: retention heads.
    pub num_attention_heads: usize,
    /// Q: width of queries and keys, all heads together.
    pub query_key_dim: usize,
    /// E: width of values, all heads together (`v_factor` times the hidden size).
    pub value_dim: usize,
    /// Middle width of the key gate's perceptron.
    pub k_gate: usize,
    /// Middle width of the value gate's perceptron.
    pub v_gate: usize,
    /// Epsilon of the root-mean-square norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// m: how many layers below are read; 0 is a gated RetNet.
    pub dense_block_layers: usize,
}

impl Architecture {
    /// Number of tokens the embedding knows.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::DenseMamba(a) => a.vocab_size,
            Self::DenseRetNet(a) => a.vocab_size,
        }
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::DenseMamba(a) => a.hidden_size,
            Self::DenseRetNet(a) => a.hidden_size,
        }
    }

    /// Number of layers.
    pub fn num_hidden_layers(&self) -> usize {
        match self {
            Self::DenseMamba(a) => a.num_hidden_layers,
            Self::DenseRetNet(a) => a.num_hidden_layers,
        }
    }

    /// Whether the graphs take and return each row's position (`past_length`, `present_length`).
    pub fn counts_positions(&self) -> bool {
        matches!(self, Self::DenseRetNet(_))
    }
}

impl DenseMamba {
    /// The layers whose states layer `layer` reads, nearest first.
    pub fn neighbours(&self, layer: usize) -> impl Iterator<Item = usize> + use<> {
        (layer.saturating_sub(self.dense_block_layers)..layer).rev()
    }
}

impl DenseRetNet {
    /// dk: width of one head's queries and keys.
    pub fn head_key_dim(&self) -> usize {
        self.query_key_dim / self.num_attention_heads
    }

    /// dv: width of one head's values.
    pub fn head_value_dim(&self) -> usize {
        self.value_dim / self.num_attention_heads
    }

    /// The layers whose keys and values layer `layer` reads, nearest first.
    pub fn neighbours(&self, layer: usize) -> impl Iterator<Item = usize> + use<> {
        (layer.saturating_sub(self.dense_block_layers)..layer).rev()
    }

    /// `γ_h = 1 - 2^(-5-h)`: what one token leaves of head `h`'s state.
    pub fn decay(head: usize) -> f64 {
        1.0 - (-5.0 - head as f64).exp2()
    }
}
