//! Writing a report to a file, in the format that the file's extension names.

use super::Report;
use std::path::{Path, PathBuf};

/// A file format of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// JSON: the data for programs.
    Json,
    /// Markdown, without charts.
    Markdown,
    /// One HTML page with charts.
    Html,
}

/// An error of a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file's extension names no format.
    #[error("{}: expected a name that ends in .json, .md or .html, got {got}", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// The extension.
        got: String,
    },
    /// The file cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The underlying I/O error.
        error: std::io::Error,
    },
    /// The data cannot be represented in JSON.
    #[error("report: {0}")]
    Data(serde_json::Error),
}

impl Format {
    /// Returns the format that a file's extension names: `.json`, `.md` or `.html`.
    ///
    /// # Errors
    /// When the file has another extension or none.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
        match extension.as_deref() {
            Some("json") => Ok(Self::Json),
            Some("md") => Ok(Self::Markdown),
            Some("html") => Ok(Self::Html),
            other => {
                let got = other.map_or("none".to_owned(), |extension| format!(".{extension}"));
                Err(Error::Extension { path: path.to_owned(), got })
            }
        }
    }
}

impl Report {
    /// Writes the report in the format that the file's extension names. The file appears complete or not at all.
    ///
    /// # Errors
    /// When the extension names no format, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let content = match Format::of(path)? {
            Format::Json => self.json(),
            Format::Markdown => self.markdown(),
            Format::Html => self.html(),
        };
        densessm_session::write_atomically(path, content.as_bytes())
            .map_err(|error| Error::Io { path: path.to_owned(), error })
    }
}
