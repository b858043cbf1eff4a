//! The error of a graph: found while it is written, reported once at the end.

use std::panic::Location;

/// A line of the source code that uses the builder.
pub(crate) type Line = &'static Location<'static>;

/// The first error made while a graph was written, with the line of source that made it.
///
/// It displays as ``node `layers/3/mixer/Add`: cannot broadcast [batch, time, 64] with [65] (emitted at nn.rs:41)``.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{what}: {problem} (emitted at {}:{})", file_name(.file), .line)]
pub struct Error {
    /// The node, weight, input, output or scope in question.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// Path of the source file that emitted it, as the compiler knows it.
    pub file: String,
    /// Line of that file.
    pub line: u32,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, problem: impl Into<String>, at: Line) -> Self {
        Self { what: what.into(), problem: problem.into(), file: at.file().to_owned(), line: at.line() }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
