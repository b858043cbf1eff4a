//! What can be wrong with a graph: found while it is written, reported once at the end.

use std::panic::Location;

/// The first mistake made while a graph was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {problem} (emitted at {}:{})", file_name(.file), .line)]
pub struct Error {
    /// The node, weight, input, output or scope in question.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// Source file that emitted it.
    pub file: String,
    /// Line of that file.
    pub line: u32,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, problem: impl Into<String>, at: &Location<'_>) -> Self {
        Self { what: what.into(), problem: problem.into(), file: at.file().to_owned(), line: at.line() }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
