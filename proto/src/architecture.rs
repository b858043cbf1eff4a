//! A model's family with its dimensions.

use crate::families::{DenseMamba, DenseRetNet, FalconMamba, Family};
use serde::{Deserialize, Serialize};

/// A model's family with its dimensions, as a manifest states them.
///
/// Each layer of the project (checkpoint, graph, reference) matches on this type in one place. It is exhaustive so that a
/// new family does not compile until each of them knows it; everything else asks the [`Family`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Architecture {
    /// Mamba with dense hidden-state connections; plain Mamba is its case `dense_block_layers` = 0.
    DenseMamba(DenseMamba),
    /// Gated-attention-unit RetNet with dense key and value connections.
    #[serde(rename = "dense_retnet")]
    DenseRetNet(DenseRetNet),
    /// Mamba with norms of the step sizes and of the input and output vectors.
    FalconMamba(FalconMamba),
}

impl Architecture {
    /// What the contract needs to know of the model, whatever its family.
    pub fn family(&self) -> &dyn Family {
        match self {
            Self::DenseMamba(dimensions) => dimensions,
            Self::DenseRetNet(dimensions) => dimensions,
            Self::FalconMamba(dimensions) => dimensions,
        }
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.family().vocab_size()
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.family().hidden_size()
    }

    /// Number of layers.
    pub fn num_hidden_layers(&self) -> usize {
        self.family().num_hidden_layers()
    }

    /// Whether the graphs take and return each row's position (`past_length`, `present_length`).
    pub fn counts_positions(&self) -> bool {
        self.family().counts_positions()
    }
}
