//! The errors between a bundle on disk and its logits.

use crate::{Device, StatesError, Unusable};
use densessm_proto::GraphKind;
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
        /// The underlying I/O error.
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
    /// An input of a graph, or an argument, is invalid.
    #[error("{name}: {problem}")]
    Input {
        /// The input's name.
        name: String,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Rows of states cannot be used as requested.
    #[error(transparent)]
    States(#[from] StatesError),
    /// The runtime that was asked for cannot be used on the device.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// No runtime of this build can be used on the device.
    #[error("{device}: no runtime can be used: {}", reasons(tried))]
    NoRuntime {
        /// The device.
        device: Device,
        /// Each runtime of the build, and why it cannot be used; empty if the build contains none.
        tried: Vec<Unusable>,
    },
    /// A graph is used that was not among those to load.
    #[error("the {graph} graph: not loaded; name it in LoadOptions::graphs")]
    NotLoaded {
        /// The graph.
        graph: GraphKind,
    },
    /// A runtime failed.
    #[error("{what}: {problem}")]
    Runtime {
        /// The operation that failed.
        what: String,
        /// The runtime's own message.
        problem: String,
    },
}

/// The reasons of several runtimes, one after the other.
fn reasons(tried: &[Unusable]) -> String {
    if tried.is_empty() {
        return "this build contains none; build densessm with the cargo feature `ort` or `tract`".to_owned();
    }
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
