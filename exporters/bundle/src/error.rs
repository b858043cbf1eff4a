//! Why a bundle could not be made.

use std::path::{Path, PathBuf};

/// An error of an export or of making a checkpoint. Nothing has been left behind when one is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint is not one that can be exported.
    #[error(transparent)]
    Checkpoint(#[from] densessm_checkpoint::Error),
    /// A graph could not be made.
    #[error(transparent)]
    Graph(#[from] densessm_graph::Error),
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The underlying I/O error.
        error: std::io::Error,
    },
    /// The target is already there.
    #[error("{}: exists already; choose another folder or pass --force to replace it", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target is there and is not something that may be replaced.
    #[error("{}: {problem}", path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// What it is instead.
        problem: String,
    },
    /// The options of an export contradict each other.
    #[error("options: {problem}")]
    Options {
        /// Which, and what to do.
        problem: String,
    },
    /// The two graphs of a bundle want the same weight in two ways.
    #[error("weight `{name}`: the graphs of the bundle disagree on how it is stored")]
    Disagreement {
        /// The weight.
        name: String,
    },
    /// The weights are more than a file can hold.
    #[error("weight `{name}`: ends beyond the largest size of a file; check the dimensions in config.json")]
    TooLarge {
        /// The first weight beyond the limit.
        name: String,
    },
    /// A weight of the graphs is not in the checkpoint.
    #[error("weight `{name}`: missing from the checkpoint")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// The caller asked for it.
    #[error("stopped before the end; nothing was written")]
    Stopped,
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }
}
