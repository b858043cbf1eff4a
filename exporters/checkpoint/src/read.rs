//! Reading a tensor's elements: by position, in pieces, widened to fp32.

use crate::{Checkpoint, DType, Error, Tensor, checkpoint::WeightFile};
use half::{bf16, f16};
use std::{fs::File, io};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

impl Checkpoint {
    /// Reads elements `start .. start + out.len()` of a tensor, in row-major order, as fp32.
    ///
    /// # Errors
    /// When the file cannot be read, the tensor is not one of floats, or an element is not finite as fp32.
    ///
    /// # Panics
    /// When the tensor has no such elements.
    pub fn read(&self, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
        assert!(start + out.len() <= tensor.elements(), "{} has no such elements", tensor.name);
        let file = &self.files[tensor.file];
        match &tensor.strides {
            None => read_run(file, tensor, start, out)?,
            Some(strides) => gather(file, tensor, strides, start, out)?,
        }
        match out.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::NotFinite {
                path: file.path.clone(),
                tensor: tensor.name.clone(),
                index: start + at,
                value: out[at].into(),
            }),
            None => Ok(()),
        }
    }
}

/// Reads elements that lie one behind the other in the file, from element `start` of the tensor's place there.
fn read_run(file: &WeightFile, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
    let size = tensor.dtype.size();
    let mut bytes = vec![0; (out.len() * size).min(PIECE / size * size)];
    let mut offset = tensor.offset + (start * size) as u64;
    for out in out.chunks_mut(bytes.len().max(size) / size) {
        let bytes = &mut bytes[..out.len() * size];
        read_exact_at(&file.file, bytes, offset).map_err(Error::io(&file.path))?;
        widen(tensor.dtype, bytes, out).map_err(|problem| {
            Error::file(&file.path, format!("{}: expected {problem}, got {}", tensor.name, tensor.dtype))
        })?;
        offset += bytes.len() as u64;
    }
    Ok(())
}

/// Reads elements that lie scattered: what they span in the file, then each from its place in it.
fn gather(file: &WeightFile, tensor: &Tensor, strides: &[usize], start: usize, out: &mut [f32]) -> Result<(), Error> {
    let place = |mut element: usize| {
        tensor.shape.iter().zip(strides).rev().fold(0, |place, (&size, &stride)| {
            let at = element % size;
            element /= size;
            place + at * stride
        })
    };
    let span = tensor.shape.iter().zip(strides).map(|(&size, &stride)| (size.max(1) - 1) * stride).sum::<usize>() + 1;
    if out.is_empty() {
        return Ok(());
    }
    let mut all = vec![0.0; span];
    read_run(file, tensor, 0, &mut all)?;
    for (i, out) in out.iter_mut().enumerate() {
        *out = all[place(start + i)];
    }
    Ok(())
}

fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), &'static str> {
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::BF16 => each(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::F64 => each(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
        DType::Other(..) => return Err("F32, F16, BF16 or F64"),
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = number(bytes);
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
