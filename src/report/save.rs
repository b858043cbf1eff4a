//! Writing a report to a file, in the form that the file's name asks for.

use super::Report;
use std::path::{Path, PathBuf};

/// A form in which a report can be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The data for programs.
    Json,
    /// Markdown.
    Markdown,
    /// One page with charts.
    Html,
}

/// An error of a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of the file does not say in which form.
    #[error("{}: expected a name that ends in .json, .md or .html, got {got}", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// What it ends in.
        got: String,
    },
    /// The file cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// The data has no form in JSON.
    #[error("report: {0}")]
    Data(serde_json::Error),
}

impl Format {
    /// The form that a file's name asks for: `.json`, `.md` or `.html`.
    ///
    /// # Errors
    /// When it ends in something else.
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
    /// Writes the report in the form that the file's name asks for, whole or not at all.
    ///
    /// # Errors
    /// When the name ends in nothing known, or the file cannot be written.
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
