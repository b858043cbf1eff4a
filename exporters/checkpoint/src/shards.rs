//! The index of a sharded checkpoint: which file holds which tensor.

use crate::{
    Error, Tensor,
    json::{self, Members},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

/// An index of shards. What is wrong with it is collected until the shards have been opened, and reported at once.
pub(crate) struct Index {
    path: PathBuf,
    /// Shards by the names of their tensors.
    weight_map: BTreeMap<String, String>,
    /// Names of tensors whose entries are wrong as such: they are not compared with the shards.
    unusable: BTreeSet<String>,
    problems: BTreeSet<String>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: Members<String>,
}

impl Index {
    /// Reads an index. Shards lie beside it: a name that leads elsewhere is never opened.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let IndexFile { weight_map: Members(members) } = json::read(path)?;
        if members.is_empty() {
            return Err(Error::file(path, "weight_map: expected tensors, got none"));
        }
        let mut index = Self {
            path: path.to_owned(),
            weight_map: BTreeMap::new(),
            unusable: BTreeSet::new(),
            problems: BTreeSet::new(),
        };
        for (tensor, shard) in members {
            index.add(tensor, shard);
        }
        Ok(index)
    }

    fn add(&mut self, tensor: String, shard: String) {
        let problem = if tensor.chars().any(char::is_control) {
            format!("weight_map: expected names without control characters, got {tensor:?}")
        } else if !is_plain(&shard) {
            format!("weight_map: expected plain file names, got {shard:?} for {tensor}")
        } else if let Some(other) = self.weight_map.get(&tensor) {
            format!("{tensor}: listed twice, in {other} and in {shard}")
        } else {
            self.weight_map.insert(tensor, shard);
            return;
        };
        self.problems.insert(problem);
        self.unusable.insert(tensor);
    }

    /// Returns the shards' names, sorted, each once.
    pub(crate) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// Returns the tensors of the shards by name, once each has been found where the index says and nowhere else.
    ///
    /// `found` holds the tensors of each shard that exists.
    pub(crate) fn resolve(self, found: BTreeMap<String, Vec<Tensor>>) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut problems = self.problems.clone();
        for shard in self.shards().into_iter().filter(|&shard| !found.contains_key(shard)) {
            let count = self.weight_map.values().filter(|&other| other == shard).count();
            problems.insert(format!("{shard}: missing, expected a file with {count} of the tensors"));
        }
        let mut holders: BTreeMap<&str, Vec<&str>> = self.weight_map.keys().map(|name| (&**name, vec![])).collect();
        for (shard, tensors) in &found {
            for tensor in tensors {
                holders.entry(&tensor.name).or_default().push(shard);
            }
        }
        for (name, holders) in holders.into_iter().filter(|&(name, _)| !self.unusable.contains(name)) {
            problems.extend(match (self.weight_map.get(name), holders.as_slice()) {
                (Some(listed), [held]) if held == listed => None,
                (Some(listed), []) if !found.contains_key(listed) => None,
                (Some(listed), []) => Some(format!("{name}: expected in {listed}, not found there")),
                (Some(listed), held) => Some(format!("{name}: expected in {listed}, found in {}", held.join(" and "))),
                (None, held) => Some(format!("{name}: found in {}, not in the index", held.join(" and "))),
            });
        }
        if !problems.is_empty() {
            return Err(Error::Index { path: self.path, problems: problems.into_iter().collect() });
        }
        Ok(found.into_values().flatten().map(|tensor| (tensor.name.clone(), tensor)).collect())
    }
}

/// Whether a name is that of a file in the same folder, and can be printed.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name);
    one && !name.contains(['/', '\\']) && !name.chars().any(char::is_control)
}
