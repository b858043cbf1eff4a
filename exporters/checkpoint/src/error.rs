//! What can be wrong with a checkpoint.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// Most wrong entries of a shard index that a message lists.
const MAX_INDEX_LINES: usize = 20;

/// An error in a checkpoint, naming the file and the part of it that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The underlying I/O error.
        error: std::io::Error,
    },
    /// A file of weights, or an index of such files, does not follow its format.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// A part of a torch file does not have the checksum that was written with it: the file was damaged since.
    #[error(
        "{}: {entry}: {}expected CRC-32 {expected:08x}, got {got:08x}; the file is damaged, copy or download it again",
        path.display(), prefix(tensor)
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Name of the entry in the file's zip archive, without the folder that all entries are in.
        entry: String,
        /// A tensor with elements in that entry; absent if the entry holds no elements.
        tensor: Option<String>,
        /// The CRC-32 in the archive's directory.
        expected: u32,
        /// The CRC-32 of the entry's bytes.
        got: u32,
    },
    /// A shard index does not describe the shards. The message lists the first problems and counts the rest.
    #[error("{}: {}", path.display(), index_lines(problems))]
    Index {
        /// The index.
        path: PathBuf,
        /// Everything that is wrong, one wrong entry or missing shard each, sorted.
        problems: Vec<String>,
    },
    /// A field of `config.json` is missing, nonsense, or contradicts the tensors.
    #[error("config.json: {field}: {problem}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong, expected and got.
        problem: String,
    },
    /// Tensors are missing, unknown, or of the wrong shape or type. The message lists all of them, one a line.
    #[error("{}: {} of its tensors do not fit the model{}", path.display(), problems.len(), lines(problems))]
    Tensors {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong, tensor by tensor.
        problems: Vec<String>,
    },
    /// An element of a tensor is NaN, infinite, or too large for fp32.
    #[error("{}: {tensor}: expected finite numbers, got {value} at element {index}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major position of the first such element.
        index: usize,
        /// The value in the file.
        value: f64,
    },
}

fn prefix(tensor: &Option<String>) -> String {
    tensor.as_ref().map(|tensor| format!("{tensor}: ")).unwrap_or_default()
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A single problem stays on the line of the file's name.
fn index_lines(problems: &[String]) -> String {
    if let [problem] = problems {
        return problem.clone();
    }
    let shown = problems.len().min(MAX_INDEX_LINES);
    let mut text = format!("{} of its entries are wrong{}", problems.len(), lines(&problems[..shown]));
    if shown < problems.len() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  and {} more", problems.len() - shown);
    }
    text
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
