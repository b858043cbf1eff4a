//! The compilation units: a kernel source and the constants it is compiled with.
//!
//! Sizes that a kernel keeps in registers are constants of the compilation. A bundle needs one unit per operator and
//! set of constants, which is known from the graph's nodes when their kernels are created.

use crate::Architecture;
use densessm_kernels::cuda;

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
}

/// A kernel source with the constants it is compiled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    name: &'static str,
    source: &'static str,
    defines: Vec<String>,
}

impl Unit {
    fn new(name: &'static str, source: &'static str, activation: Activation, constants: &[(&str, usize)]) -> Self {
        let constants = constants.iter().map(|(name, value)| format!("-D{name}={value}"));
        Self { name, source, defines: [activation.define().to_owned()].into_iter().chain(constants).collect() }
    }

    /// Replaces the source, keeping the constants: for experiments with a kernel.
    #[must_use]
    pub fn with_source(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    /// Returns the source's name, which is that of its main kernel.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the CUDA C++ source.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Returns what the source may include, by name.
    pub fn headers(&self) -> &'static [(&'static str, &'static str)] {
        cuda::HEADERS
    }

    /// Returns the compiler's options.
    pub fn options(&self, architecture: Architecture) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".to_owned(),
            "--extra-device-vectorization".to_owned(),
            // Lambdas are functions of the device.
            "--device-as-default-execution-space".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        options.extend(self.defines.iter().cloned());
        options
    }
}

/// `CausalConv` with this number of taps.
pub fn causal_conv(activation: Activation, taps: usize) -> Unit {
    Unit::new("causal_conv", cuda::CAUSAL_CONV, activation, &[("TAPS", taps)])
}

/// `SelectiveScan` with N states a channel and this number of neighbours.
///
/// The module's constant `selective_scan_shape` holds the channels and the threads of a block.
pub fn selective_scan(activation: Activation, states: usize, neighbours: usize) -> Unit {
    let constants = [("STATES", states), ("NEIGHBOURS", neighbours)];
    Unit::new("selective_scan", cuda::SELECTIVE_SCAN, activation, &constants)
}

/// `SelectiveStep` with N states a channel and this number of neighbours.
pub fn selective_step(activation: Activation, states: usize, neighbours: usize) -> Unit {
    let constants = [("STATES", states), ("NEIGHBOURS", neighbours)];
    Unit::new("selective_step", cuda::SELECTIVE_STEP, activation, &constants)
}

/// `DenseNorm` over vectors of this width, with this number of neighbours.
pub fn dense_norm(activation: Activation, width: usize, neighbours: usize) -> Unit {
    Unit::new("dense_norm", cuda::DENSE_NORM, activation, &[("WIDTH", width), ("NEIGHBOURS", neighbours)])
}

/// `Retention` token by token in fp32, with heads of this many keys and values.
pub fn retention(activation: Activation, keys: usize, values: usize) -> Unit {
    Unit::new("retention", cuda::RETENTION, activation, &[("KEYS", keys), ("VALUES", values)])
}

/// `Retention` in chunks on tensor cores; fp16 and bf16 only, and [`retention_chunks_fit`] must hold.
///
/// The module's constant `retention_chunks_shape` holds threads, columns of a block and bytes of dynamic shared memory of
/// the main kernel, then threads and bytes of `retention_chunks_prepare`. Large heads need more shared memory than some
/// GPUs have, which [`Function::prepare`](crate::Function::prepare) refuses.
pub fn retention_chunks(activation: Activation, keys: usize, values: usize) -> Unit {
    Unit::new("retention_chunks", cuda::RETENTION_CHUNKS, activation, &[("KEYS", keys), ("VALUES", values)])
}

/// Whether the tensor core kernels support heads of this many keys and values.
pub const fn retention_chunks_fit(keys: usize, values: usize) -> bool {
    keys.is_multiple_of(32) && keys <= 384 && values.is_multiple_of(64)
}

/// `RetentionStep` with heads of this many keys and values.
pub fn retention_step(activation: Activation, keys: usize, values: usize) -> Unit {
    Unit::new("retention_step", cuda::RETENTION_STEP, activation, &[("KEYS", keys), ("VALUES", values)])
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

/// The whole decode step of Mamba or DenseMamba as one persistent kernel; fp16 and bf16.
///
/// It needs compute capability 9.0 or newer, 227 KiB of shared memory for a block, and as many multiprocessors as it has
/// blocks. The module's constant `mamba_step_shape` holds blocks, threads of a block, bytes of dynamic shared memory,
/// and the lengths of the four buffers through which blocks exchange values.
/// [`Function::prepare`](crate::Function::prepare) refuses a GPU that is too small.
pub fn mamba_step(activation: Activation, shape: &MambaShape) -> Unit {
    let constants = [
        ("HIDDEN", shape.hidden),
        ("INNER", shape.inner),
        ("STATES", 16),
        ("RANK", shape.rank),
        ("TAPS", shape.taps),
        ("GATE", shape.gate),
        ("NEIGHBOURS", shape.neighbours),
        ("LAYERS", shape.layers),
        ("BATCH", shape.batch),
    ];
    Unit::new("mamba_step", cuda::MAMBA_STEP, activation, &constants)
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
/// [`Function::prepare`](crate::Function::prepare) refuses a GPU that is too small.
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
    Unit::new("retnet_step", cuda::RETNET_STEP, activation, &constants)
}
