//! Bundles, snapshots and inputs, without any runtime.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bundle;
mod inputs;
#[cfg(feature = "onnx")]
mod onnx;
mod registry;
mod snapshot;
mod write;

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_session::Bundle;
use std::{ops::ControlFlow, path::Path};
use tempfile::TempDir;

const MAMBA: &str = "densemamba-m2-both-gates";
const RETNET: &str = "denseretnet-m1-reference-layout";

/// A small random model's bundle, in a folder that lasts as long as the first value.
fn exported(name: &str) -> (TempDir, Bundle) {
    exported_with(name, &ExportOptions::default())
}

fn exported_with(name: &str, options: &ExportOptions) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Checkpoint::open(&model).unwrap();
    export(&checkpoint, &out, options, |_| ControlFlow::Continue(())).unwrap();
    (folder, Bundle::open(&out).unwrap())
}
