//! Why a runtime cannot be used on a device, and what to do about it.

use crate::{Device, RuntimeId, Version};
use std::{fmt, path::PathBuf};

/// A runtime cannot be used on a device.
///
/// The message states the reason and, where something can be done about it, what.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unusable {
    /// The runtime.
    pub runtime: RuntimeId,
    /// The device.
    pub device: Device,
    /// Why.
    pub reason: UnusableReason,
}

impl Unusable {
    /// States that a runtime cannot be used on a device.
    pub const fn new(runtime: RuntimeId, device: Device, reason: UnusableReason) -> Self {
        Self { runtime, device, reason }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device.is_cpu() {
            true => write!(f, "{}: {}", self.runtime, self.reason),
            false => write!(f, "{} on {}: {}", self.runtime, self.device, self.reason),
        }
    }
}

impl std::error::Error for Unusable {}

/// Why a runtime cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableReason {
    /// This build does not contain the runtime.
    #[error("not part of this build; build densessm with the cargo feature of the runtime's name (`ort`, `tract`)")]
    NotCompiled,
    /// The runtime has no implementation for the provider.
    #[error("runs on the processor only; use --runtime ort for a GPU")]
    CpuOnly,
    /// The provider is not one that the runtime knows.
    #[error("does not support this provider; `densessm doctor` lists those that can be used")]
    UnknownProvider,
    /// No shared library of the runtime was found.
    #[error(
        "library not found in {variable}, beside the executable, in Python's packages or the system's; \
         `{install}`, or set {variable} to the path of the library"
    )]
    LibraryNotFound {
        /// The environment variable that names the library.
        variable: &'static str,
        /// The command that installs it.
        install: &'static str,
    },
    /// The environment variable that names the library names no file.
    #[error("{variable}: no file at {}; correct the path or unset the variable", path.display())]
    NoSuchFile {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The library cannot be loaded.
    #[error("{}: {problem}; set ORT_DYLIB_PATH to another one", path.display())]
    BrokenLibrary {
        /// The library.
        path: PathBuf,
        /// The message of the system's loader, or what the library lacks.
        problem: String,
    },
    /// The library is too old.
    #[error(
        "{}: expected version {}.{} or newer, got {found}; install a newer one or set ORT_DYLIB_PATH to it",
        path.display(), oldest.major, oldest.minor
    )]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest version that can be used.
        oldest: Version,
    },
    /// The library was built without the provider.
    #[error(
        "{} (version {version}) was built without this provider; `pip install onnxruntime-gpu`, or set ORT_DYLIB_PATH \
         to a build that has it",
        library.display()
    )]
    NoProvider {
        /// The library.
        library: PathBuf,
        /// Its version.
        version: Version,
    },
    /// The provider does not start on the device.
    #[error("{problem}; `densessm doctor` lists the libraries and GPUs that were found")]
    DeviceFailed {
        /// The provider's message.
        problem: String,
    },
}
