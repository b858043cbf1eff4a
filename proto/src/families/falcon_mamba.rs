//! Falcon-Mamba.

use super::{Family, mamba};
use crate::{StateTensor, probes::ProbeList, states::LOGITS};
use serde::{Deserialize, Serialize};

/// Dimensions of a Falcon-Mamba (arXiv 2410.05355): a Mamba (arXiv 2312.00752) that normalises the step sizes' bottleneck
/// and the input and output vectors of the scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FalconMamba {
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
    /// Epsilon of the root-mean-square norms between the layers.
    pub layer_norm_epsilon: f64,
    /// Epsilon of the root-mean-square norms inside a layer, which have no weights.
    pub mixer_rms_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl Family for FalconMamba {
    fn name(&self) -> &'static str {
        "Falcon-Mamba"
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
        0
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
            ("time_step_rank", self.time_step_rank),
        ]
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn recurrence_flops(&self) -> usize {
        self.num_hidden_layers * mamba::layer_flops(self.intermediate_size, self.conv_kernel, self.state_size, 0)
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
            let norms = [("delta_norm", self.time_step_rank), ("b_norm", self.state_size), ("c_norm", self.state_size)];
            block.probes(
                &mut list.layer("backbone", layer),
                |layer| {
                    for (norm, width) in norms {
                        layer.tokens(&format!("mixer.{norm}"), &format!("mixer/{norm}/Mul"), width);
                    }
                },
                |_| {},
            );
        }
        list.positions("backbone.norm_f", "backbone/norm_f/Mul", self.hidden_size);
        list.positions(LOGITS, LOGITS, self.vocab_size);
    }
}
