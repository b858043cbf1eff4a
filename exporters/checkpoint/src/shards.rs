//! The index of a sharded checkpoint: which file holds which tensor.

use crate::{
    Error, Tensor,
    checkpoint::{WeightFile, read_json},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

/// An index of shards, read and checked.
pub(crate) struct Index {
    path: PathBuf,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index. Shards lie beside it: their names have no way out of the folder.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let IndexFile { weight_map } = read_json(path)?;
        if weight_map.is_empty() {
            return Err(Error::file(path, "weight_map: expected tensors, got none"));
        }
        for name in weight_map.values() {
            let mut parts = Path::new(name).components();
            let plain =
                matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name.as_str());
            if !plain || name.contains(['/', '\\']) {
                return Err(Error::file(path, format!("weight_map: expected plain file names, got {name:?}")));
            }
        }
        Ok(Self { path: path.to_owned(), weight_map })
    }

    /// The shards' names, each once.
    pub(crate) fn files(&self) -> Vec<String> {
        self.weight_map.values().collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// Checks that each tensor is where the index says, and that there is no other.
    pub(crate) fn check(&self, files: &[WeightFile], tensors: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        for (name, file) in &self.weight_map {
            let held = tensors.get(name).and_then(|tensor| files[tensor.file].path.file_name());
            if held.is_none_or(|held| held != file.as_str()) {
                return Err(Error::file(&self.path, format!("{name}: expected in {file}, not found there")));
            }
        }
        match tensors.keys().find(|name| !self.weight_map.contains_key(*name)) {
            Some(name) => Err(Error::file(&self.path, format!("{name}: in a shard and not in the index"))),
            None => Ok(()),
        }
    }
}
