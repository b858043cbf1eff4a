//! Finds and opens the files of weights in a checkpoint's folder.

use crate::{
    Error, Tensor, checksum::Checksum, families, file, file::WeightFile, safetensors_file, shards::Index, torch,
};
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The opened files of a checkpoint and the tensors in them, by name.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) files: Vec<WeightFile>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

impl Weights {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        for (name, format) in [("model.safetensors", Format::Safetensors), ("pytorch_model.bin", Format::Torch)] {
            let path = dir.join(name);
            if path.is_file() {
                let (file, tensors) = open_file(path, format, 0)?;
                let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
                return Self { files: vec![file], tensors }.canonical(dir);
            }
            let index = dir.join(format!("{name}.index.json"));
            if index.is_file() {
                return Self::open_shards(dir, &index, format)?.canonical(dir);
            }
        }
        let expected = "expected model.safetensors or pytorch_model.bin, or an index of shards of either";
        Err(Error::file(dir, format!("no weights; {expected}")))
    }

    fn open_shards(dir: &Path, index: &Path, format: Format) -> Result<Self, Error> {
        let index = Index::open(index)?;
        let mut files = Vec::new();
        let mut shards = BTreeMap::new();
        for name in index.shards() {
            let path = dir.join(name);
            // The index reports all shards that are missing.
            if matches!(path.metadata(), Err(error) if error.kind() == ErrorKind::NotFound) {
                continue;
            }
            let (file, tensors) = open_file(path, format, files.len())?;
            files.push(file);
            shards.insert(name.to_owned(), tensors);
        }
        Ok(Self { tensors: index.resolve(shards)?, files })
    }

    /// Renames tensors as the families' current code writes them.
    fn canonical(mut self, dir: &Path) -> Result<Self, Error> {
        let mut renamed = BTreeMap::new();
        for (name, tensor) in self.tensors {
            let name = families::current_name(&name).map_or(name, str::to_owned);
            if renamed.insert(name.clone(), Tensor { name: name.clone(), ..tensor }).is_some() {
                return Err(Error::file(dir, format!("{name}: appears twice, under its old and its new name")));
            }
        }
        self.tensors = renamed;
        Ok(self)
    }
}

/// Opens a file, which becomes number `index` of the checkpoint's, and reads its header.
fn open_file(path: PathBuf, format: Format, index: usize) -> Result<(WeightFile, Vec<Tensor>), Error> {
    let file = file::open(&path)?;
    let (tensors, checksums): (_, Vec<Checksum>) = match format {
        Format::Safetensors => (safetensors_file::tensors(&path, &file, index)?, Vec::new()),
        Format::Torch => torch::tensors(&path, &file, index)?,
    };
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.name.chars().any(char::is_control)) {
        return Err(Error::file(&path, format!("expected names without control characters, got {:?}", tensor.name)));
    }
    Ok((WeightFile { path, file, checksums }, tensors))
}
