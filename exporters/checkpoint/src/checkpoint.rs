//! An opened checkpoint: its architecture and its tensors.

use crate::{Error, Tensor, config, json, weights::Weights};
use densessm_proto::Architecture;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// An opened checkpoint folder: the model's dimensions and a list of its tensors.
///
/// The elements of tensors stay in their files until [`Checkpoint::read`].
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    architecture: Architecture,
    weights: Weights,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and one of `model.safetensors`, `model.safetensors.index.json`,
    /// `pytorch_model.bin` and `pytorch_model.bin.index.json`. If there are several, the first of this list is used.
    ///
    /// Only headers are read. The files stay open until the checkpoint is dropped.
    ///
    /// # Errors
    /// When a file is missing, truncated or does not follow its format, when a shard index does not describe its
    /// shards, or when `config.json` is nonsense or contradicts the tensors.
    ///
    /// # Examples
    /// Reading a tensor as fp32:
    ///
    /// ```no_run
    /// use densessm_checkpoint::Checkpoint;
    ///
    /// let checkpoint = Checkpoint::open("mamba-370m".as_ref())?;
    /// for tensor in checkpoint.tensors() {
    ///     println!("{}: {} {:?}", tensor.name, tensor.dtype, tensor.shape);
    /// }
    /// let tensor = checkpoint.tensor("backbone.norm_f.weight").expect("every Mamba has a final norm");
    /// let mut values = vec![0.0; tensor.elements()];
    /// checkpoint.read(tensor, 0, &mut values)?;
    /// # Ok::<(), densessm_checkpoint::Error>(())
    /// ```
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let config = json::read(&dir.join("config.json"))?;
        let weights = Weights::open(dir)?;
        let shape = |name: &str| weights.tensors.get(name).map(|tensor| tensor.shape.as_slice());
        let architecture = config::parse(&config, &shape)?;
        Ok(Self { dir: dir.to_owned(), architecture, weights })
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the model's architecture with its dimensions, validated.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Iterates over all tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.weights.tensors.values()
    }

    /// Returns the tensor of this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.weights.tensors.get(name)
    }

    /// Returns the path of the file that holds a tensor of this checkpoint.
    pub fn file(&self, tensor: &Tensor) -> &Path {
        &self.weights.files[tensor.file].path
    }

    /// Reads elements `start .. start + out.len()` of one of this checkpoint's tensors, in row-major order, as fp32.
    ///
    /// The entries of torch files have checksums, which are verified while their bytes are read: an error of the whole
    /// entry may come with its last bytes. Once everything has been read, call [`Checkpoint::verify`] for the entries
    /// that were read partially or out of order.
    ///
    /// # Errors
    /// When the tensor has no such elements or is not one of floats, when the file cannot be read or is damaged, or
    /// when an element is not finite as fp32.
    pub fn read(&self, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let file = &self.weights.files[tensor.file];
        match file.read(tensor, start, out) {
            // If the file is damaged, that is the better explanation.
            Err(error @ Error::NotFinite { .. }) => {
                let _ = file.verify(tensor, &mut |_| ControlFlow::Continue(()))?;
                Err(error)
            }
            other => other,
        }
    }

    /// Verifies the checksums that reading the tensors has not verified yet.
    ///
    /// After [`Checkpoint::read`] has read all tensors whole this reads nothing, or little. Safetensors files have no
    /// checksums; neither have torch files saved with `compute_crc32 = False`, which store 0 for every entry.
    ///
    /// `progress` is called with the number of bytes after each piece that is read; if it breaks, so does this.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn verify(&self, mut progress: impl FnMut(u64) -> ControlFlow<()>) -> Result<ControlFlow<()>, Error> {
        for tensor in self.tensors() {
            if self.weights.files[tensor.file].verify(tensor, &mut progress)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
