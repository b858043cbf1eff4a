//! Files that `torch.save` wrote: a zip archive with a pickle, which describes tensors, and one entry a storage.

mod archive;
mod machine;
mod object;
mod opcode;

use crate::{Error, Tensor, checksum::Checksum};
use archive::Archive;
use std::{fs::File, path::Path};

/// Reads the tensors of a file, which is number `index` of the checkpoint's, and the checksums of its entries.
pub(crate) fn tensors(path: &Path, file: &File, index: usize) -> Result<(Vec<Tensor>, Vec<Checksum>), Error> {
    let archive = Archive::open(path, file)?;
    let pickle = archive.pickle(file)?;
    let described = machine::run(&pickle).map_err(|problem| Error::file(path, format!("data.pkl: {problem}")))?;
    let tensors = described.into_iter().map(|(name, tensor)| archive.locate(name, &tensor, index));
    Ok((tensors.collect::<Result<_, _>>()?, archive.checksums))
}
