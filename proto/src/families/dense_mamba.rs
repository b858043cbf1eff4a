//! DenseMamba, and plain Mamba as its case without dense connections.

use super::{Family, mamba, neighbours};
use crate::{StateTensor, probes::ProbeList, states::LOGITS};
use serde::{Deserialize, Serialize};

/// Dimensions of a DenseMamba (arXiv 2403.00818, section 3.3, based on arXiv 2312.00752).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseMamba {
    /// Number of tokens in the vocabulary.
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
    /// R: width of the bottleneck from which the step sizes are computed.
    pub time_step_rank: usize,
    /// Whether `in_proj` and `out_proj` have a bias.
    pub use_bias: bool,
    /// Whether `conv1d` has a bias.
    pub use_conv_bias: bool,
    /// Epsilon of the root-mean-square norms.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// m: the number of layers below that a layer reads; 0 is plain Mamba.
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
    /// Not at all.
    Identity,
    /// By a matrix `[N, N]` over the state axis.
    Linear,
}

impl DenseMamba {
    /// The layers whose states layer `layer` reads, nearest first.
    pub fn neighbours(&self, layer: usize) -> impl Iterator<Item = usize> + use<> {
        neighbours(layer, self.dense_block_layers)
    }
}

impl Family for DenseMamba {
    fn name(&self) -> &'static str {
        if self.dense_block_layers == 0 { "Mamba" } else { "DenseMamba" }
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_hidden_layers(&self) -> usize {
        self.num_hidden_layers
    }

    fn tie_word_embeddings(&self) -> bool {
        self.tie_word_embeddings
    }

    fn dense_block_layers(&self) -> usize {
        self.dense_block_layers
    }

    fn counts_positions(&self) -> bool {
        false
    }

    fn states(&self, layer: usize) -> Vec<StateTensor> {
        mamba::states(layer, self.intermediate_size, self.conv_kernel, self.state_size)
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("state_size", self.state_size),
            ("conv_kernel", self.conv_kernel),
        ]
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn recurrence_flops(&self) -> usize {
        let layers = 0..self.num_hidden_layers;
        let (channels, taps, states) = (self.intermediate_size, self.conv_kernel, self.state_size);
        layers.map(|layer| mamba::layer_flops(channels, taps, states, self.neighbours(layer).count())).sum()
    }

    fn probes(&self, list: &mut ProbeList) {
        let block = mamba::Layer {
            hidden: self.hidden_size,
            channels: self.intermediate_size,
            taps: self.conv_kernel,
            states: self.state_size,
            rank: self.time_step_rank,
            use_bias: self.use_bias,
        };
        list.embeddings("backbone.embeddings", "backbone", self.hidden_size);
        for layer in 0..self.num_hidden_layers {
            let reads = self.neighbours(layer).next().is_some();
            let channel = self.channel_gate.map(|_| ("channel_gate", self.intermediate_size));
            let state = self.state_gate.map(|_| ("state_gate", self.state_size));
            block.probes(
                &mut list.layer("backbone", layer),
                |_| {},
                |layer| {
                    for (gate, width) in channel.into_iter().chain(state).filter(|_| reads) {
                        let value = format!("mixer/dense/{gate}/fc2/MatMul");
                        layer.tokens(&format!("mixer.dense.{gate}"), &value, width);
                    }
                },
            );
        }
        list.positions("backbone.norm_f", "backbone/norm_f/Mul", self.hidden_size);
        list.positions(LOGITS, LOGITS, self.vocab_size);
    }
}
