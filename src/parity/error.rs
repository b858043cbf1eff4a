//! What can prevent a comparison.

use crate::proto::GraphKind;

/// An error of [`parity`](crate::parity): the comparison could not be made or finished.
///
/// A bundle that computes something else than its checkpoint is not an error, but a [`Parity`](super::Parity) that has
/// not passed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] densessm_checkpoint::Error),
    /// The reference implementation does not accept the checkpoint.
    #[error(transparent)]
    Reference(#[from] densessm_reference::Error),
    /// The bundle cannot be read, or a runtime failed.
    #[error(transparent)]
    Runtime(#[from] densessm_session::Error),
    /// The options do not fit the checkpoint, or the checkpoint does not fit the bundle.
    #[error("{what}: {problem}")]
    Options {
        /// The option in question.
        what: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
    /// A value that is to be compared inside a graph is missing or has another layout.
    #[error("{graph} graph: probe `{name}`: {problem}; export the checkpoint again with this version")]
    Probe {
        /// The graph.
        graph: GraphKind,
        /// The name of the value in the checkpoint's words.
        name: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// The caller stopped the comparison.
    #[error("stopped before the comparison was complete")]
    Stopped,
}
