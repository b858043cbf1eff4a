//! Files with false content: each is an error that names the file, and takes no more memory than its own size.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod checksums;
mod headers;
mod pickles;

use densessm_checkpoint::Checkpoint;
use std::{fs, path::Path};
use tempfile::TempDir;

const MAMBA: &str = r#"{"model_type": "mamba", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1}"#;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), MAMBA).unwrap();
    folder
}

fn refused(folder: &Path, file: &str, words: &str) {
    let error = Checkpoint::open(folder).unwrap_err().to_string();
    assert!(error.contains(file) && error.contains(words), "expected {file} and {words:?}, got {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.len() < 1000, "an error of {} bytes", error.len());
}
