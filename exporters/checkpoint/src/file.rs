//! Files: opened if they are regular, and read by position.

use crate::{Error, checksum::Checksum};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// A file of weights, kept open for as long as its checkpoint.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The checksums that the file holds of its parts.
    pub(crate) checksums: Vec<Checksum>,
}

/// Opens a regular file. Anything else that has a name is an error: reading a pipe would block.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    if path.metadata().map_err(Error::io(path))?.is_file() {
        File::open(path).map_err(Error::io(path))
    } else {
        Err(Error::file(path, "expected a regular file"))
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}
