//! Precisions: how a bundle stores weights, and in which type its graphs compute.

use crate::DType;
use serde::{Deserialize, Serialize};

/// How a bundle's matrices are stored.
///
/// Everything else (vectors, the taps of convolutions, decay rates, states and logits) is fp32 in every precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// IEEE half precision: 11 significant bits, magnitudes up to 65504.
    Fp16,
    /// The upper half of a 32-bit float: 8 significant bits, the range of fp32.
    Bf16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Fp16, Self::Bf16];

    /// Element type of the matrices.
    pub const fn matrices(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The precision whose matrices have this type, if there is one.
    pub const fn with_matrices(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::Fp32),
            DType::F16 => Some(Self::Fp16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Whether a tensor of a checkpoint is one of the matrices: a factor of a product with activations, or the table of
    /// the embedding. A convolution's taps have three axes, decay rates are no `weight`, and the projections of hidden
    /// states belong to the recurrence.
    ///
    /// ```
    /// # use densessm_proto::Precision;
    /// assert!(Precision::stores("backbone.layers.0.mixer.in_proj.weight", 2));
    /// assert!(!Precision::stores("backbone.layers.0.mixer.A_log", 2));
    /// assert!(!Precision::stores("backbone.layers.0.mixer.dense.projections.0.weight", 2));
    /// ```
    pub fn stores(tensor: &str, axes: usize) -> bool {
        axes == 2 && tensor.ends_with(".weight") && !tensor.contains(".projections.")
    }

    /// The name that commands and manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
