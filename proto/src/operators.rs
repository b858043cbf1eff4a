//! The names by which graphs and kernels find each other.

/// Domain of the custom operators.
pub const DOMAIN: &str = "ai.densessm";
/// Version of the domain.
pub const VERSION: i64 = 1;
/// Causal depthwise convolution with carried inputs, then silu.
pub const CAUSAL_CONV: &str = "CausalConv";
/// Selective scan over a sequence, with dense neighbours, skip and output gate.
pub const SELECTIVE_SCAN: &str = "SelectiveScan";
/// One token of the selective scan, with the neighbours' states at hand.
pub const SELECTIVE_STEP: &str = "SelectiveStep";
/// Retention over a sequence.
pub const RETENTION: &str = "Retention";
/// One token of retention.
pub const RETENTION_STEP: &str = "RetentionStep";
/// RMSNorm of a vector that takes in those of the layers below, through a gate.
pub const DENSE_NORM: &str = "DenseNorm";
