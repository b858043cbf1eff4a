//! The compilation units: a kernel source and the constants it is compiled with.
//!
//! Sizes that a kernel keeps in registers are constants of the compilation. A bundle needs one unit per operator and
//! set of constants, which is known from the graph's nodes when their kernels are created.

use super::sources;
use densessm_cuda::Unit;
use densessm_proto::DType;

/// The element type of activations; states, norm weights, `A`, skip weights and biases of Δ are always fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// fp32.
    F32,
    /// fp16.
    F16,
    /// bf16.
    Bf16,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Returns the type's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// The bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    const fn define(self) -> &'static str {
        match self {
            Self::F32 => "-DACTIVATION=32",
            Self::F16 => "-DACTIVATION=16",
            Self::Bf16 => "-DACTIVATION=17",
        }
    }

    /// The type of activations of a kernel; none for a type that no CUDA kernel has.
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }
}

/// A unit of a source that includes the project's headers.
fn unit(name: &'static str, source: &'static str, activation: Activation, constants: &[(&str, usize)]) -> Unit {
    let constants = constants.iter().map(|(name, value)| format!("-D{name}={value}"));
    let defines = [activation.define().to_owned()].into_iter().chain(constants).collect();
    Unit::new(name, source, sources::HEADERS, defines)
}

/// `CausalConv` with this number of taps.
pub fn causal_conv(activation: Activation, taps: usize) -> Unit {
    unit("causal_conv", sources::CAUSAL_CONV, activation, &[("TAPS", taps)])
}

/// `SelectiveScan` with N states a channel and this number of neighbours.
///
/// The module's constant `selective_scan_shape` holds the channels and the threads of a block.
pub fn selective_scan(activation: Activation, states: usize, neighbours: usize) -> Unit {
    let constants = [("STATES", states), ("NEIGHBOURS", neighbours)];
    unit("selective_scan", sources::SELECTIVE_SCAN, activation, &constants)
}

/// `SelectiveStep` with N states a channel and this number of neighbours.
pub fn selective_step(activation: Activation, states: usize, neighbours: usize) -> Unit {
    let constants = [("STATES", states), ("NEIGHBOURS", neighbours)];
    unit("selective_step", sources::SELECTIVE_STEP, activation, &constants)
}

/// `DenseNorm` over vectors of this width, with this number of neighbours.
pub fn dense_norm(activation: Activation, width: usize, neighbours: usize) -> Unit {
    unit("dense_norm", sources::DENSE_NORM, activation, &[("WIDTH", width), ("NEIGHBOURS", neighbours)])
}

/// `Retention` token by token in fp32, with heads of this many keys and values.
pub fn retention(activation: Activation, keys: usize, values: usize) -> Unit {
    unit("retention", sources::RETENTION, activation, &[("KEYS", keys), ("VALUES", values)])
}

/// `Retention` in chunks on tensor cores; fp16 and bf16 only, and [`retention_chunks_fit`] must hold.
///
/// The module's constant `retention_chunks_shape` holds threads, columns of a block and bytes of dynamic shared memory of
/// the main kernel, then threads and bytes of `retention_chunks_prepare`. Large heads need more shared memory than some
/// GPUs have, which [`Function::prepare`](densessm_cuda::Function::prepare) refuses.
pub fn retention_chunks(activation: Activation, keys: usize, values: usize) -> Unit {
    unit("retention_chunks", sources::RETENTION_CHUNKS, activation, &[("KEYS", keys), ("VALUES", values)])
}

/// Whether the tensor core kernels support heads of this many keys and values.
pub const fn retention_chunks_fit(keys: usize, values: usize) -> bool {
    keys.is_multiple_of(32) && keys <= 384 && values.is_multiple_of(64)
}

/// `RetentionStep` with heads of this many keys and values.
pub fn retention_step(activation: Activation, keys: usize, values: usize) -> Unit {
    unit("retention_step", sources::RETENTION_STEP, activation, &[("KEYS", keys), ("VALUES", values)])
}

/// The sizes of a Mamba or DenseMamba model that its decode step is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MambaShape {
    /// The residual stream's width.
    pub hidden: usize,
    /// D: channels of a layer.
    pub inner: usize,
    /// R: the width of the step sizes before `dt_proj`.
    pub rank: usize,
    /// K: taps of the convolution.
    pub taps: usize,
    /// The middle width of the gates.
    pub gate: usize,
    /// m: neighbours that a layer reads; 0 is plain Mamba.
    pub neighbours: usize,
    /// The number of layers.
    pub layers: usize,
    /// Rows of the batch, 1 to 8.
    pub batch: usize,
}

impl MambaShape {
    /// Numbers in the hidden state of a channel.
    pub const STATES: usize = 16;
    /// The most rows of a batch.
    pub const MOST_ROWS: usize = 8;
    /// The middle width that stands for that of a model without gates.
    pub const NO_GATE: usize = 64;

    /// Whether the kernel is written for these sizes: those of a model with 1024 numbers in the residual stream and 2048
    /// channels, any number of layers, and at most [`Self::MOST_ROWS`] rows.
    pub const fn is_supported(&self) -> bool {
        let sums = self.rank + 2 * Self::STATES;
        self.hidden == 1024
            && self.inner == 2048
            && self.rank > 0
            && self.rank.is_multiple_of(32)
            && sums <= 128
            && self.taps >= 2
            && self.taps <= 4
            && self.gate > 0
            && self.gate.is_multiple_of(32)
            && self.gate <= 64
            && self.neighbours <= 4
            && self.layers >= 2
            && self.layers <= 128
            && self.batch >= 1
            && self.batch <= Self::MOST_ROWS
    }

    /// Blocks of a launch, each of which needs a multiprocessor of its own.
    pub const fn blocks(&self) -> usize {
        const CHANNELS_OF_BLOCK: usize = 16;
        const ROWS_OF_BLOCK: usize = 32;
        self.inner / CHANNELS_OF_BLOCK + if self.neighbours > 0 { 2 * self.gate / ROWS_OF_BLOCK } else { 4 }
    }

    /// Shared memory that a block may need, in bytes.
    pub const SHARED_BYTES: usize = 227 << 10;
}

/// The whole decode step of Mamba or DenseMamba as one persistent kernel; fp16 and bf16.
///
/// It needs compute capability 9.0 or newer, 227 KiB of shared memory for a block, and as many multiprocessors as it has
/// blocks. The module's constant `mamba_step_shape` holds blocks, threads of a block, bytes of dynamic shared memory,
/// and the lengths of the four buffers through which blocks exchange values.
/// [`Function::prepare`](densessm_cuda::Function::prepare) refuses a GPU that is too small.
pub fn mamba_step(activation: Activation, shape: &MambaShape) -> Unit {
    let constants = [
        ("HIDDEN", shape.hidden),
        ("INNER", shape.inner),
        ("STATES", MambaShape::STATES),
        ("RANK", shape.rank),
        ("TAPS", shape.taps),
        ("GATE", shape.gate),
        ("NEIGHBOURS", shape.neighbours),
        ("LAYERS", shape.layers),
        ("BATCH", shape.batch),
    ];
    unit("mamba_step", sources::MAMBA_STEP, activation, &constants)
}

/// The sizes of a DenseRetNet model that its decode step is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetNetShape {
    /// The residual stream's width.
    pub hidden: usize,
    /// Values of all heads; twice the residual stream's width.
    pub inner: usize,
    /// Keys of all heads.
    pub query_keys: usize,
    /// The number of heads.
    pub heads: usize,
    /// The middle width of the keys' gate.
    pub key_gate: usize,
    /// The middle width of the values' gate.
    pub value_gate: usize,
    /// m: neighbours that a layer reads; 0 is a gated RetNet.
    pub neighbours: usize,
    /// The number of layers.
    pub layers: usize,
    /// Rows of the batch, 1 to 8.
    pub batch: usize,
}

/// The whole decode step of DenseRetNet as one persistent kernel; fp16 and bf16.
///
/// It needs compute capability 9.0 or newer, 227 KiB of shared memory for a block, and as many multiprocessors as it has
/// blocks. The module's constant `retnet_step_shape` holds blocks, threads of a block, bytes of dynamic shared memory,
/// and the lengths of the five buffers through which blocks exchange values.
/// [`Function::prepare`](densessm_cuda::Function::prepare) refuses a GPU that is too small.
pub fn retnet_step(activation: Activation, shape: &RetNetShape) -> Unit {
    let constants = [
        ("HIDDEN", shape.hidden),
        ("INNER", shape.inner),
        ("QUERY_KEYS", shape.query_keys),
        ("HEADS", shape.heads),
        ("KEY_GATE", shape.key_gate),
        ("VALUE_GATE", shape.value_gate),
        ("NEIGHBOURS", shape.neighbours),
        ("LAYERS", shape.layers),
        ("BATCH", shape.batch),
    ];
    unit("retnet_step", sources::RETNET_STEP, activation, &constants)
}
