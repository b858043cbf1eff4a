//! An opened checkpoint: its configuration and an index of its tensors.

use crate::{Error, Tensor, config, families, safetensors_file, shards, torch};
use densessm_proto::Architecture;
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes of a configuration or an index of shards.
const LONGEST_JSON: u64 = 16 << 20;

/// A file of weights, held open for as long as the checkpoint is.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// A checkpoint's folder, opened. Tensors' elements are read by [`Checkpoint::read`] and not before.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) dir: PathBuf,
    architecture: Architecture,
    pub(crate) files: Vec<WeightFile>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and `model.safetensors`, `model.safetensors.index.json`,
    /// `pytorch_model.bin` or `pytorch_model.bin.index.json`, the first of these that is there.
    ///
    /// # Errors
    /// When a file is missing, truncated, not what its format says, or the configuration is nonsense.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let json = read_json(&dir.join("config.json"))?;
        let (files, tensors) = open_weights(dir)?;
        let architecture = config::parse(&json, &|name| tensors.get(name).map(|tensor| tensor.shape.as_slice()))?;
        Ok(Self { dir: dir.to_owned(), architecture, files, tensors })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model and its dimensions, validated.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The file a tensor lies in.
    pub fn file(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file].path
    }
}

/// Opens a file, and nothing else that has a name: a pipe would be waited for.
fn open_file(path: &Path) -> Result<File, Error> {
    if path.metadata().map_err(Error::io(path))?.is_file() {
        File::open(path).map_err(Error::io(path))
    } else {
        Err(Error::file(path, "expected a file"))
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let mut text = Vec::new();
    open_file(path)?.take(LONGEST_JSON + 1).read_to_end(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > LONGEST_JSON {
        return Err(Error::file(path, format!("expected up to {LONGEST_JSON} bytes, got more")));
    }
    serde_json::from_slice(&text).map_err(|error| Error::file(path, error.to_string()))
}

type Weights = (Vec<WeightFile>, BTreeMap<String, Tensor>);

fn open_weights(dir: &Path) -> Result<Weights, Error> {
    for (name, format) in [("model.safetensors", Format::Safetensors), ("pytorch_model.bin", Format::Torch)] {
        if dir.join(name).is_file() {
            let (files, tensors) = open_files(dir, &[name.to_owned()], format)?;
            return Ok((files, canonical(dir, tensors)?));
        }
        let index = dir.join(format!("{name}.index.json"));
        if index.is_file() {
            let index = shards::Index::open(&index)?;
            let (files, tensors) = open_files(dir, &index.files(), format)?;
            index.check(&files, &tensors)?;
            return Ok((files, canonical(dir, tensors)?));
        }
    }
    let expected = "expected model.safetensors or pytorch_model.bin, or an index of shards of either";
    Err(Error::file(dir, format!("no weights; {expected}")))
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

fn open_files(dir: &Path, names: &[String], format: Format) -> Result<Weights, Error> {
    let mut files = Vec::new();
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (index, name) in names.iter().enumerate() {
        let path = dir.join(name);
        let file = open_file(&path)?;
        let found = match format {
            Format::Safetensors => safetensors_file::tensors(&path, &file, index)?,
            Format::Torch => torch::tensors(&path, &file, index)?,
        };
        for tensor in found {
            if tensor.name.chars().any(char::is_control) {
                return Err(Error::file(
                    &path,
                    format!("expected names without control characters, got {:?}", tensor.name),
                ));
            }
            if let Some(twice) = tensors.insert(tensor.name.clone(), tensor) {
                return Err(Error::file(&path, format!("{}: there twice", twice.name)));
            }
        }
        files.push(WeightFile { path, file });
    }
    Ok((files, tensors))
}

/// Names as the families' current code writes them.
fn canonical(dir: &Path, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut renamed: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, tensor) in tensors {
        let new = families::current_name(&name).map_or(name, str::to_owned);
        if renamed.insert(new.clone(), Tensor { name: new.clone(), ..tensor }).is_some() {
            return Err(Error::file(dir, format!("{new}: there twice, under its old and its new name")));
        }
    }
    Ok(renamed)
}
