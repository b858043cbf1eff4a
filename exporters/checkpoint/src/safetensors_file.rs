//! The header of a safetensors file. Parsing and the checks of offsets are the format's own crate's; that the file is
//! as long as the header says is checked here, for here the file is not in memory, and that each name stands there
//! once, for the crate keeps the last.

use crate::{DType, Error, Tensor};
use safetensors::{Dtype, tensor::Metadata};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::{collections::BTreeSet, fmt, fs::File, io::Read, path::Path};

/// The largest header read. A tensor takes some hundred bytes of it; parsing takes many times its size.
const LONGEST_HEADER: u64 = 8 << 20;

/// The tensors of a file, whose index among the checkpoint's files is `index`.
pub(crate) fn tensors(path: &Path, file: &File, index: usize) -> Result<Vec<Tensor>, Error> {
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; 8];
    if size < length.len() as u64 {
        return Err(Error::file(path, format!("truncated: expected a header, got {size} bytes")));
    }
    let mut reader = file;
    reader.read_exact(&mut length).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size - 8 {
        return Err(Error::file(path, format!("expected a header within its {size} bytes, got one of {length}")));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).map_err(Error::io(path))?;
    let broken = |error: serde_json::Error| Error::file(path, format!("header: {error}"));
    let NamesOnce = serde_json::from_slice(&header).map_err(broken)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(broken)?;

    let infos = metadata.tensors();
    let data = 8 + length;
    let end = infos.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    if data.checked_add(end) != Some(size) {
        let expected = data.saturating_add(end);
        return Err(Error::file(path, format!("expected {expected} bytes as its header says, got {size}")));
    }
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| Tensor {
        name,
        shape: info.shape.clone(),
        dtype: dtype(info.dtype),
        file: index,
        offset: data + info.data_offsets.0 as u64,
        strides: None,
    };
    Ok(infos.into_iter().map(tensor).collect())
}

/// An object whose names all differ.
struct NamesOnce;

impl<'de> Deserialize<'de> for NamesOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = NamesOnce;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamesOnce, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if let Some(twice) = names.replace(name) {
                        return Err(A::Error::custom(format!("{twice}: there twice")));
                    }
                }
                Ok(NamesOnce)
            }
        }

        deserializer.deserialize_map(Names)
    }
}

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::Other("I64", 8),
        Dtype::I32 => DType::Other("I32", 4),
        Dtype::I8 => DType::Other("I8", 1),
        Dtype::U8 => DType::Other("U8", 1),
        _ => DType::Other("an element type of another kind", 1),
    }
}
