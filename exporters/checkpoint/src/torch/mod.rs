//! Files that `torch.save` wrote: a zip archive with a pickle and one entry a storage.

mod archive;
mod machine;
mod object;
mod opcode;

use crate::{Error, Tensor};
use archive::Archive;
use std::{fs::File, path::Path};

/// The tensors of a file, whose index among the checkpoint's files is `index`.
pub(crate) fn tensors(path: &Path, file: &File, index: usize) -> Result<Vec<Tensor>, Error> {
    let archive = Archive::open(path, file)?;
    let pickle = archive.pickle(file)?;
    let described = machine::run(&pickle).map_err(|problem| Error::file(path, format!("data.pkl: {problem}")))?;
    described.into_iter().map(|(name, tensor)| archive.place(name, &tensor, index)).collect()
}
