//! What can be wrong with a checkpoint.

use std::path::{Path, PathBuf};

/// An error of a checkpoint, naming the file and the thing in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// A file of weights, or an index of such files, is not what its format says.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// A field of `config.json` is missing, nonsense, or contradicts the tensors.
    #[error("config.json: {field}: {problem}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Tensors are missing, not known, or of another shape: all of them, a line each.
    #[error("{}: {} of its tensors do not fit the model{}", path.display(), problems.len(), lines(problems))]
    Tensors {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong, tensor by tensor.
        problems: Vec<String>,
    },
    /// A weight is not a number.
    #[error("{}: {tensor}: expected finite numbers, got {value} at element {index}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major position of the first such element.
        index: usize,
        /// What stands there.
        value: f64,
    },
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn config(field: &str, problem: impl Into<String>) -> Self {
        Self::Config { field: field.to_owned(), problem: problem.into() }
    }
}
