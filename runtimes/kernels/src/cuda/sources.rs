//! The sources of the CUDA kernels, as text.

/// What several sources include, by the name under which they do.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../cuda/common.cuh")),
    ("mma.cuh", include_str!("../../cuda/mma.cuh")),
    ("mamba_step_shape.cuh", include_str!("../../cuda/mamba_step_shape.cuh")),
    ("mamba_step_words.cuh", include_str!("../../cuda/mamba_step_words.cuh")),
    ("mamba_step_copies.cuh", include_str!("../../cuda/mamba_step_copies.cuh")),
    ("mamba_step_products.cuh", include_str!("../../cuda/mamba_step_products.cuh")),
    ("mamba_step_layer.cuh", include_str!("../../cuda/mamba_step_layer.cuh")),
    ("retention.cuh", include_str!("../../cuda/retention.cuh")),
    ("retnet_step_copies.cuh", include_str!("../../cuda/retnet_step_copies.cuh")),
    ("retnet_step_products.cuh", include_str!("../../cuda/retnet_step_products.cuh")),
    ("retnet_step_shape.cuh", include_str!("../../cuda/retnet_step_shape.cuh")),
    ("retnet_step_words.cuh", include_str!("../../cuda/retnet_step_words.cuh")),
];

/// The causal convolution, over sequences and single tokens.
pub(super) const CAUSAL_CONV: &str = include_str!("../../cuda/causal_conv.cu");
/// The selective scan over sequences.
pub(super) const SELECTIVE_SCAN: &str = include_str!("../../cuda/selective_scan.cu");
/// One token of the selective scan.
pub(super) const SELECTIVE_STEP: &str = include_str!("../../cuda/selective_step.cu");
/// The dense connection of keys and values.
pub(super) const DENSE_NORM: &str = include_str!("../../cuda/dense_norm.cu");
/// Retention over sequences: token by token in fp32.
pub(super) const RETENTION: &str = include_str!("../../cuda/retention.cu");
/// Retention over sequences in chunks on tensor cores.
pub(super) const RETENTION_CHUNKS: &str = include_str!("../../cuda/retention_chunks.cu");
/// One token of retention.
pub(super) const RETENTION_STEP: &str = include_str!("../../cuda/retention_step.cu");
/// The whole decode step of Mamba and DenseMamba as one kernel.
pub(super) const MAMBA_STEP: &str = include_str!("../../cuda/mamba_step.cu");
/// The whole decode step of DenseRetNet as one kernel.
pub(super) const RETNET_STEP: &str = include_str!("../../cuda/retnet_step.cu");
