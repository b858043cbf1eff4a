//! What can go wrong between a bundle on disk and its logits.

use crate::StatesError;
use std::path::PathBuf;

/// An error of a bundle, a runtime or what was fed to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a bundle, or of states, cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// A bundle contradicts itself or this build.
    #[error("{}: {problem}", path.display())]
    Bundle {
        /// The file in question.
        path: PathBuf,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Something fed to a graph does not fit it.
    #[error("{name}: {problem}")]
    Input {
        /// The input's name.
        name: String,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Rows of states cannot be used as asked.
    #[error(transparent)]
    States(#[from] StatesError),
    /// A runtime or device cannot be used.
    #[error("{what}: {problem}")]
    Unusable {
        /// The runtime or device.
        what: String,
        /// Why, and what to do.
        problem: String,
    },
    /// A runtime failed.
    #[error("{what}: {problem}")]
    Runtime {
        /// What it was doing.
        what: String,
        /// Its own words.
        problem: String,
    },
}
