//! What can fail between this process and the GPU.

use std::path::PathBuf;

/// An error of the CUDA driver, of NVRTC or of a kernel's compilation.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shared library was not found or could not be loaded.
    #[error("{library}: library not found, expected it from {package}, got: {problem}; {advice}")]
    MissingLibrary {
        /// The library's name, such as `libcuda.so.1`.
        library: &'static str,
        /// The package that brings it.
        package: &'static str,
        /// What the system's loader says.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// A shared library was loaded but lacks a function.
    #[error("{}: function missing, expected `{function}`, got a library without it; update {package}", path.display())]
    MissingFunction {
        /// The library.
        path: PathBuf,
        /// The function's name.
        function: &'static str,
        /// The package that brings a newer library.
        package: &'static str,
    },
    /// The driver is older than the kernels need.
    #[error(
        "NVIDIA driver: expected one that supports CUDA {}.{} or newer, got CUDA {}.{}; update the driver",
        expected.0, expected.1, got.0, got.1
    )]
    DriverTooOld {
        /// The CUDA version that is needed, major and minor.
        expected: (u32, u32),
        /// The CUDA version that the driver supports.
        got: (u32, u32),
    },
    /// There is no GPU, or none with this number.
    #[error("GPU {ordinal}: device not found, got {count} devices; check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// The GPU is of a kind that the kernels do not support.
    #[error("{device}: compute capability, expected 8.0 or newer, got {major}.{minor}")]
    UnsupportedDevice {
        /// The GPU's name.
        device: String,
        /// Its compute capability, major.
        major: u32,
        /// Its compute capability, minor.
        minor: u32,
    },
    /// A launch needs more of a resource than the GPU has.
    #[error(
        "{device}: {resource}, expected {expected} or more, got {got}; use a GPU with more, or kernels that need less"
    )]
    DeviceTooSmall {
        /// The GPU's name.
        device: String,
        /// What the launch needs too much of.
        resource: &'static str,
        /// How much the launch needs.
        expected: usize,
        /// How much the GPU has.
        got: usize,
    },
    /// The GPU's memory does not suffice.
    #[error(
        "GPU memory: expected {requested} free bytes, got {free} of {total}; use a smaller batch, a lower precision or a GPU with more memory"
    )]
    OutOfMemory {
        /// The bytes of the allocation that failed.
        requested: usize,
        /// The bytes that were free.
        free: usize,
        /// The GPU's memory in bytes.
        total: usize,
    },
    /// A call of the driver failed.
    #[error("{call}: CUDA driver call, expected success, got {name} ({code}): {description}")]
    Driver {
        /// The function that failed.
        call: &'static str,
        /// The driver's error code.
        code: u32,
        /// The code's name.
        name: String,
        /// The driver's description of the code.
        description: String,
    },
    /// A call of NVRTC failed.
    #[error("{call}: NVRTC call, expected success, got {description} ({code})")]
    Nvrtc {
        /// The function that failed.
        call: &'static str,
        /// NVRTC's error code.
        code: u32,
        /// NVRTC's description of the code.
        description: String,
    },
    /// A kernel source does not compile.
    #[error("{unit}: compilation for {architecture}, expected success, got:\n{log}")]
    Compilation {
        /// The compilation unit.
        unit: String,
        /// The architecture, such as `sm_90`.
        architecture: String,
        /// The compiler's log.
        log: String,
    },
    /// A call's arguments contradict each other.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument.
        argument: &'static str,
        /// What is wrong with it: expected and got.
        problem: String,
    },
}

impl Error {
    pub(crate) fn argument(argument: &'static str, problem: impl Into<String>) -> Self {
        Self::Argument { argument, problem: problem.into() }
    }
}
