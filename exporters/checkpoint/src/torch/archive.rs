//! The archive: where the pickle and the storages lie in the file.

use super::object::Described;
use crate::{Error, Tensor, read::read_exact_at, tensor::elements};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, ErrorKind},
    path::{Path, PathBuf},
};
use zip::{CompressionMethod, ZipArchive};

/// A pickle describes tensors in some hundred bytes each; one beyond this is none of a model's.
const LONGEST_PICKLE: u64 = 8 << 20;
/// How files begin that `torch.save` wrote before version 1.6: with a pickle instead of an archive.
const PICKLE_START: u8 = 0x80;

/// Where an entry's bytes lie: stored as they are, so that they can be read by position.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    size: u64,
}

/// An archive with its entries, by name without the folder that all of them are in.
pub(super) struct Archive {
    path: PathBuf,
    entries: HashMap<String, Entry>,
}

impl Archive {
    pub(super) fn open(path: &Path, file: &File) -> Result<Self, Error> {
        let mut first = [0];
        let began = read_exact_at(file, &mut first, 0);
        if began.is_ok() && first == [PICKLE_START] {
            let remedy = "load it and torch.save it again with a newer version, or convert it to safetensors";
            return Err(Error::file(path, format!("written by a torch older than 1.6; {remedy}")));
        }
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
            let place = entry.data_start().map(|start| Entry { start, size: entry.size() });
            let place = place.filter(|place| place.start.checked_add(place.size).is_some_and(|end| end <= size));
            let place =
                place.ok_or_else(|| Error::file(path, format!("{name}: expected within the file's {size} bytes")))?;
            let inner = name.split_once('/').map_or(name.as_str(), |(_, inner)| inner);
            if entries.insert(inner.to_owned(), place).is_some() {
                return Err(Error::file(path, format!("{name}: there twice")));
            }
        }
        let archive = Self { path: path.to_owned(), entries };
        archive.check_byte_order(file)?;
        Ok(archive)
    }

    /// Files of machines that count bytes the other way say so; older files say nothing and are little-endian.
    fn check_byte_order(&self, file: &File) -> Result<(), Error> {
        if !self.entries.contains_key("byteorder") {
            return Ok(());
        }
        match self.entry(file, "byteorder", 16)?.as_slice() {
            b"little" => Ok(()),
            other => {
                let got = String::from_utf8_lossy(other).into_owned();
                Err(Error::file(&self.path, format!("byteorder: expected little, got {got}")))
            }
        }
    }

    pub(super) fn pickle(&self, file: &File) -> Result<Vec<u8>, Error> {
        self.entry(file, "data.pkl", LONGEST_PICKLE)
    }

    fn entry(&self, file: &File, name: &str, longest: u64) -> Result<Vec<u8>, Error> {
        let entry = self.entries.get(name).filter(|entry| entry.size <= longest);
        let entry = entry
            .ok_or_else(|| Error::file(&self.path, format!("expected an entry {name} of up to {longest} bytes")))?;
        let mut bytes = vec![0; entry.size as usize];
        read_exact_at(file, &mut bytes, entry.start).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::file(&self.path, "truncated"),
            _ => Error::io(&self.path)(error),
        })?;
        Ok(bytes)
    }

    /// A described tensor as one of the checkpoint's, once its storage has been found to hold it.
    pub(super) fn place(&self, name: &str, described: &Described<'_>, index: usize) -> Result<Tensor, Error> {
        let Described { storage, offset, shape, strides } = described;
        let problem = |problem: String| Err(Error::file(&self.path, format!("{name}: {problem}")));
        let key = format!("data/{}", storage.key);
        let Some(entry) = self.entries.get(&key) else {
            return problem(format!("expected its storage {key} in the archive, not found"));
        };
        let size = storage.dtype.size() as u64;
        if (storage.elements as u64).checked_mul(size) != Some(entry.size) {
            let (elements, dtype) = (storage.elements, storage.dtype);
            return problem(format!("expected a storage of {elements} {dtype}, got {} bytes", entry.size));
        }
        let (Some(count), true) = (elements(shape), shape.len() == strides.len()) else {
            return problem(format!("expected sizes with strides, got {shape:?} with {strides:?}"));
        };
        let end = if count == 0 { Some(*offset) } else { end(*offset, shape, strides) };
        if end.is_none_or(|end| end > storage.elements) {
            let held = storage.elements;
            return problem(format!(
                "expected {shape:?} from element {offset} on in a storage of {held}, not held by it"
            ));
        }
        if count > 0 && !nested(shape, strides) {
            return problem(format!(
                "expected each element at a place of its own, got {shape:?} by strides {strides:?}"
            ));
        }
        Ok(Tensor {
            dtype: storage.dtype,
            file: index,
            offset: entry.start + *offset as u64 * size,
            strides: (count > 0 && !row_major(shape, strides)).then(|| strides.clone()),
            shape: shape.clone(),
            name: name.to_owned(),
        })
    }
}

/// The place behind a view's last element.
fn end(offset: usize, shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut sizes = shape.iter().zip(strides);
    sizes.try_fold(offset, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?))?.checked_add(1)
}

/// Whether each axis steps over all that the axes of smaller strides span, so that no two elements share a place.
/// Transposing, slicing and taking diagonals keep it so; repeating an element does not.
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

/// Whether elements lie one behind the other in order. The stride of an axis of size 1 says nothing.
fn row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}
