//! The repository's models, exported, and the runtimes they are loaded on.

use densessm::{Bundle, Checkpoint, Device, ExportOptions, Model, export, proto::Lowering, runtime};
use safetensors::SafeTensors;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub(crate) const RUNTIMES: [runtime::Choice; 2] = runtime::ALL;
pub(crate) const LOWERINGS: [Lowering; 2] = [Lowering::Function, Lowering::Inline];

fn tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// A trained checkpoint of the repository.
pub(crate) fn trained(name: &str) -> PathBuf {
    tests().join("checkpoints").join(name)
}

/// A bundle that the version which introduced a format wrote.
pub(crate) fn fixture(format: &str, family: &str) -> PathBuf {
    tests().join("fixtures").join(format).join(family)
}

/// A small random model with known logits.
pub(crate) fn golden(name: &str) -> PathBuf {
    tests().join("goldens").join(name)
}

/// Every model of the repository.
pub(crate) fn models() -> Vec<PathBuf> {
    let list = |folder: &str| std::fs::read_dir(tests().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<PathBuf> = list("goldens").chain(list("checkpoints")).collect();
    models.sort();
    assert!(models.len() >= 10, "expected the repository's models, got {models:?}");
    models
}

/// A bundle in a folder of its own.
pub(crate) struct Exported {
    pub(crate) bundle: Bundle,
    _folder: TempDir,
}

/// Exports a model.
pub(crate) fn exported(model: &Path, options: &ExportOptions) -> Exported {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Checkpoint::open(model).unwrap();
    export(&checkpoint, &out, options, |_| ControlFlow::Continue(())).unwrap();
    Exported { bundle: Bundle::open(&out).unwrap(), _folder: folder }
}

/// Loads both graphs of a bundle on the CPU.
pub(crate) fn load(bundle: &Bundle, choice: runtime::Choice) -> Box<dyn Model> {
    runtime::load(bundle, choice, Device::CPU).unwrap_or_else(|error| {
        panic!("{}: {error}\n(tests/run fetches ONNX Runtime; on its own, set ORT_DYLIB_PATH)", choice.name())
    })
}

/// Inputs with the logits they must give.
pub(crate) struct Golden {
    /// `[batch, time]`
    pub(crate) ids: Vec<i64>,
    pub(crate) lengths: Vec<usize>,
    pub(crate) time: usize,
    /// `[batch, time, vocabulary]`
    pub(crate) logits: Vec<f32>,
    pub(crate) vocabulary: usize,
}

impl Golden {
    pub(crate) fn open(model: &Path) -> Self {
        let bytes = std::fs::read(model.join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
        let shape = tensors.tensor("logits").unwrap().shape().to_vec();
        Self {
            ids: data("input_ids").as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
            lengths: data("sequence_lengths")
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| i32::from_le_bytes(bytes) as usize)
                .collect(),
            time: shape[1],
            logits: data("logits").as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            vocabulary: shape[2],
        }
    }

    /// The tokens of a row, without its padding.
    pub(crate) fn row(&self, row: usize) -> &[i64] {
        &self.ids[row * self.time..][..self.lengths[row]]
    }

    /// The scores that must follow a token of a row.
    pub(crate) fn at(&self, row: usize, time: usize) -> &[f32] {
        &self.logits[(row * self.time + time) * self.vocabulary..][..self.vocabulary]
    }
}
