//! The header of a safetensors file.
//!
//! The `safetensors` crate parses it and checks the offsets. Two checks are added. The file's length must be what the
//! header says, as the crate sees a header without its file. And no name may appear twice, as the crate keeps the last.

use crate::{Error, StoredDType, Tensor, json::Members};
use densessm_proto::DType;
use safetensors::{Dtype, tensor::Metadata};
use serde::de::IgnoredAny;
use std::{collections::BTreeSet, fs::File, io::Read, path::Path};

/// Largest header in bytes. A tensor takes about a hundred bytes of it; parsing takes many times its size.
const MAX_HEADER: u64 = 8 << 20;

/// Reads the tensors of a file, which is number `index` of the checkpoint's.
pub(crate) fn tensors(path: &Path, file: &File, index: usize) -> Result<Vec<Tensor>, Error> {
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; 8];
    if size < length.len() as u64 {
        return Err(Error::file(path, format!("truncated: expected a header, got {size} bytes")));
    }
    let mut reader = file;
    reader.read_exact(&mut length).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size - 8 {
        return Err(Error::file(path, format!("expected a header within its {size} bytes, got one of {length}")));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).map_err(Error::io(path))?;
    let broken = |error: serde_json::Error| Error::file(path, format!("header: {error}"));
    let Members::<IgnoredAny>(members) = serde_json::from_slice(&header).map_err(broken)?;
    let mut names = BTreeSet::new();
    if let Some((name, _)) = members.iter().find(|(name, _)| !names.insert(name)) {
        return Err(Error::file(path, format!("header: {}: appears twice", name.escape_debug())));
    }
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
        dtype: stored(info.dtype),
        file: index,
        offset: data + info.data_offsets.0 as u64,
        strides: None,
        checksum: None,
    };
    Ok(infos.into_iter().map(tensor).collect())
}

fn stored(dtype: Dtype) -> StoredDType {
    StoredDType::Known(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        other => return StoredDType::Unsupported(unsupported(other)),
    })
}

fn unsupported(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F4 => "F4",
        Dtype::F6_E2M3 => "F6_E2M3",
        Dtype::F6_E3M2 => "F6_E3M2",
        Dtype::F8_E5M2 => "F8_E5M2",
        Dtype::F8_E4M3 => "F8_E4M3",
        Dtype::F8_E8M0 => "F8_E8M0",
        Dtype::F8_E4M3FNUZ => "F8_E4M3FNUZ",
        Dtype::F8_E5M2FNUZ => "F8_E5M2FNUZ",
        Dtype::I16 => "I16",
        Dtype::U16 => "U16",
        Dtype::U32 => "U32",
        Dtype::U64 => "U64",
        Dtype::C64 => "C64",
        _ => "another element type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_types_have_the_names_that_files_give_them() {
        for dtype in [
            Dtype::F4,
            Dtype::F6_E2M3,
            Dtype::F6_E3M2,
            Dtype::F8_E5M2,
            Dtype::F8_E4M3,
            Dtype::F8_E8M0,
            Dtype::F8_E4M3FNUZ,
            Dtype::F8_E5M2FNUZ,
            Dtype::I16,
            Dtype::U16,
            Dtype::U32,
            Dtype::U64,
            Dtype::C64,
        ] {
            assert_eq!(stored(dtype).to_string(), dtype.to_string());
        }
    }
}
