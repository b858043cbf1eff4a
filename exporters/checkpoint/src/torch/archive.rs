//! The zip archive: where the pickle and the storages are in the file, and their checksums.

use super::object::Described;
use crate::{Error, Tensor, checksum::Checksum, file::read_exact_at, tensor::elements};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, ErrorKind},
    path::{Path, PathBuf},
};
use zip::{CompressionMethod, ZipArchive};

/// Largest pickle in bytes: it describes a tensor in a few hundred bytes, so a longer one is not that of a model.
const MAX_PICKLE: u64 = 8 << 20;
/// The first byte of files that `torch.save` wrote before version 1.6: they start with a pickle instead of an archive.
const PICKLE_START: u8 = 0x80;

/// An entry, which is stored uncompressed so that it can be read by position.
struct Entry {
    start: u64,
    size: u64,
    /// The CRC-32 in the archive's directory.
    crc: u32,
}

/// An opened archive.
pub(super) struct Archive {
    path: PathBuf,
    /// Entries by name, without the folder that all of them are in, with the indexes of their checksums.
    entries: HashMap<String, (Entry, Option<usize>)>,
    pub(super) checksums: Vec<Checksum>,
}

impl Archive {
    pub(super) fn open(path: &Path, file: &File) -> Result<Self, Error> {
        let mut first = [0];
        let read = read_exact_at(file, &mut first, 0);
        if read.is_ok() && first == [PICKLE_START] {
            let remedy = "load it and torch.save it again with a newer version, or convert it to safetensors";
            return Err(Error::file(path, format!("written by a torch older than 1.6; {remedy}")));
        }
        let entries = entries(path, file)?;
        // torch.save with compute_crc32 = False writes 0 for every entry. A single 0 is a checksum like any other.
        let has_checksums = entries.values().any(|entry| entry.crc != 0);
        let mut archive = Self { path: path.to_owned(), entries: HashMap::new(), checksums: Vec::new() };
        for (name, entry) in entries {
            let checksum = has_checksums.then_some(archive.checksums.len());
            if has_checksums {
                let range = entry.start..entry.start + entry.size;
                archive.checksums.push(Checksum::new(name.clone(), range, entry.crc));
            }
            archive.entries.insert(name, (entry, checksum));
        }
        archive.check_byte_order(file)?;
        Ok(archive)
    }

    /// Files written on big-endian machines say so. Files of older versions say nothing and are little-endian.
    fn check_byte_order(&self, file: &File) -> Result<(), Error> {
        if !self.entries.contains_key("byteorder") {
            return Ok(());
        }
        match self.read(file, "byteorder", 16)?.as_slice() {
            b"little" => Ok(()),
            other => {
                let got = String::from_utf8_lossy(other).into_owned();
                Err(Error::file(&self.path, format!("byteorder: expected little, got {got}")))
            }
        }
    }

    /// Reads the pickle.
    pub(super) fn pickle(&self, file: &File) -> Result<Vec<u8>, Error> {
        self.read(file, "data.pkl", MAX_PICKLE)
    }

    /// Reads an entry whole and verifies its checksum.
    fn read(&self, file: &File, name: &str, longest: u64) -> Result<Vec<u8>, Error> {
        let entry = self.entries.get(name).filter(|(entry, _)| entry.size <= longest);
        let (entry, checksum) = entry
            .ok_or_else(|| Error::file(&self.path, format!("expected an entry {name} of up to {longest} bytes")))?;
        let mut bytes = vec![0; entry.size as usize];
        read_exact_at(file, &mut bytes, entry.start).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::file(&self.path, "truncated"),
            _ => Error::io(&self.path)(error),
        })?;
        let checked = checksum.map_or(Ok(()), |index| self.checksums[index].update(entry.start, &bytes));
        checked.map_err(|mismatch| Error::Checksum {
            path: self.path.clone(),
            entry: name.to_owned(),
            tensor: None,
            expected: mismatch.expected,
            got: mismatch.got,
        })?;
        Ok(bytes)
    }

    /// Returns a described tensor as one of the checkpoint's, once its storage has been found to hold it.
    pub(super) fn locate(&self, name: &str, described: &Described<'_>, index: usize) -> Result<Tensor, Error> {
        let Described { storage, offset, shape, strides } = described;
        let problem = |problem: String| Err(Error::file(&self.path, format!("{name}: {problem}")));
        let key = format!("data/{}", storage.key);
        let Some((entry, checksum)) = self.entries.get(&key) else {
            return problem(format!("expected its storage {key} in the archive, not found"));
        };
        let size = storage.element_size as u64;
        if (storage.elements as u64).checked_mul(size) != Some(entry.size) {
            let (elements, dtype) = (storage.elements, storage.dtype);
            return problem(format!("expected a storage of {elements} {dtype}, got {} bytes", entry.size));
        }
        let (Some(count), true) = (elements(shape), shape.len() == strides.len()) else {
            return problem(format!("expected sizes with strides, got {shape:?} with {strides:?}"));
        };
        let end = if count == 0 { Some(*offset) } else { end(*offset, shape, strides) };
        if end.is_none_or(|end| end > storage.elements) {
            let elements = storage.elements;
            return problem(format!(
                "expected a view within its storage of {elements} elements, \
                 got {shape:?} by strides {strides:?} from element {offset} on"
            ));
        }
        if count > 0 && !nested(shape, strides) {
            return problem(format!("expected each element at its own position, got {shape:?} by strides {strides:?}"));
        }
        Ok(Tensor {
            dtype: storage.dtype,
            file: index,
            offset: entry.start + *offset as u64 * size,
            strides: (count > 0 && !row_major(shape, strides)).then(|| strides.clone()),
            checksum: *checksum,
            shape: shape.clone(),
            name: name.to_owned(),
        })
    }
}

/// Reads the archive's directory. Names lose the folder that all entries are in.
fn entries(path: &Path, file: &File) -> Result<HashMap<String, Entry>, Error> {
    let broken = |error: zip::result::ZipError| Error::file(path, format!("not an archive of torch.save: {error}"));
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut entries = HashMap::new();
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(broken)?;
        let name = entry.name().map_err(broken)?.into_owned();
        let stored = entry.compression() == CompressionMethod::Stored && entry.compressed_size() == entry.size();
        if !stored || entry.encrypted() {
            return Err(Error::file(path, format!("{name}: expected a stored entry, got a compressed one")));
        }
        let found = entry.data_start().map(|start| Entry { start, size: entry.size(), crc: entry.crc32() });
        let found = found.filter(|found| found.start.checked_add(found.size).is_some_and(|end| end <= size));
        let found =
            found.ok_or_else(|| Error::file(path, format!("{name}: expected within the file's {size} bytes")))?;
        let inner = name.split_once('/').map_or(name.as_str(), |(_, inner)| inner);
        if entries.insert(inner.to_owned(), found).is_some() {
            return Err(Error::file(path, format!("{name}: appears twice")));
        }
    }
    Ok(entries)
}

/// Returns the position after a view's last element.
fn end(offset: usize, shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut sizes = shape.iter().zip(strides);
    sizes.try_fold(offset, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?))?.checked_add(1)
}

/// Whether each axis steps over everything that the axes of smaller strides span, so that no two elements share a
/// position. Transposed views, slices and diagonals do; expanded views, which repeat elements, do not.
fn nested(shape: &[usize], strides: &[usize]) -> bool {
    let mut axes: Vec<_> = shape.iter().zip(strides).filter(|&(&size, _)| size > 1).collect();
    axes.sort_by_key(|&(_, stride)| stride);
    let mut span = 1;
    axes.into_iter().all(|(size, &stride)| {
        let steps_over = stride >= span;
        span += (size - 1) * stride;
        steps_over
    })
}

/// Whether the elements are stored in order and without gaps. The stride of an axis of size 1 has no meaning.
fn row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}
