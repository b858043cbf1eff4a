//! The runtimes outside this project that a bundle can be exported for.

use crate::tensorrt;
use densessm_proto::{Lowering, Manifest};
use std::fmt;

/// File name of the description of a bundle's deployment.
pub(crate) const README_FILE: &str = "README.md";

/// A runtime outside this project. A bundle for it contains the file `README.md`, which describes its deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// TensorRT, by itself or as a provider of ONNX Runtime.
    TensorRt,
}

impl Target {
    /// Returns the name on the command line: `tensorrt`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TensorRt => "tensorrt",
        }
    }

    /// Returns the lowering that the runtime needs.
    pub const fn lowering(self) -> Lowering {
        match self {
            Self::TensorRt => Lowering::Inline,
        }
    }

    /// Returns the text of the bundle's `README.md`.
    pub(crate) fn readme(self, manifest: &Manifest) -> String {
        match self {
            Self::TensorRt => tensorrt::readme(manifest),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
