//! The header of a safetensors file. Parsing and the checks of offsets are the format's own crate's; that the file is
//! as long as the header says is checked here, for here the file is not in memory.

use crate::{DType, Error, Tensor};
use safetensors::{Dtype, tensor::Metadata};
use std::{fs::File, io::Read, path::Path};

/// The largest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

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
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| Error::file(path, format!("header: {error}")))?;

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

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::Other("I64", 8),
        Dtype::I32 => DType::Other("I32", 4),
        Dtype::I8 | Dtype::U8 => DType::Other("I8", 1),
        _ => DType::Other("an element type of another kind", 1),
    }
}
