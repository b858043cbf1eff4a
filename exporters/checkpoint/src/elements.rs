//! Reads a tensor's elements by position, through a buffer of fixed size, converted to fp32.

use crate::{
    Error, Tensor,
    checksum::ChecksumMismatch,
    convert::{to_f32, to_f64},
    file::{WeightFile, read_exact_at},
    view::Windows,
};
use densessm_proto::DType;
use std::ops::{ControlFlow, Range};

/// Largest number of bytes read at once.
const PIECE: usize = 1 << 20;

impl WeightFile {
    /// Reads elements `start .. start + out.len()` of a tensor of this file. See [`crate::Checkpoint::read`].
    pub(crate) fn read(&self, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let problem = |problem: String| Error::file(&self.path, format!("{}: {problem}", tensor.name));
        let Some(dtype) = tensor.dtype.float() else {
            return Err(problem(format!("expected fp32, fp16, bf16 or fp64, got {}", tensor.dtype)));
        };
        if start.checked_add(out.len()).is_none_or(|end| end > tensor.elements()) {
            let (elements, count) = (tensor.elements(), out.len());
            return Err(problem(format!("expected a part of its {elements} elements, got {count} from {start} on")));
        }
        if out.is_empty() {
            return Ok(());
        }
        let source = Source { file: self, tensor, dtype };
        match &tensor.strides {
            None => source.read_contiguous(start, out),
            Some(strides) => source.read_view(strides, start, out),
        }
    }

    /// Verifies the entry that holds a tensor, as far as no read has done so.
    pub(crate) fn verify(
        &self,
        tensor: &Tensor,
        progress: &mut impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let Some(checksum) = tensor.checksum.map(|index| &self.checksums[index]) else {
            return Ok(ControlFlow::Continue(()));
        };
        let Range { mut start, end } = checksum.remaining().map_err(|mismatch| self.damaged(tensor, mismatch))?;
        let mut bytes = vec![0; (PIECE as u64).min(end - start) as usize];
        while start < end {
            let piece = bytes.len().min((end - start) as usize);
            self.read_bytes(tensor, start, &mut bytes[..piece])?;
            start += piece as u64;
            if progress(piece as u64).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads bytes of the entry that holds a tensor, and includes them in the entry's checksum.
    fn read_bytes(&self, tensor: &Tensor, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        read_exact_at(&self.file, bytes, offset).map_err(Error::io(&self.path))?;
        match tensor.checksum {
            Some(index) => {
                self.checksums[index].update(offset, bytes).map_err(|mismatch| self.damaged(tensor, mismatch))
            }
            None => Ok(()),
        }
    }

    fn damaged(&self, tensor: &Tensor, ChecksumMismatch { expected, got }: ChecksumMismatch) -> Error {
        let entry = tensor.checksum.map(|index| self.checksums[index].entry.clone()).unwrap_or_default();
        Error::Checksum { path: self.path.clone(), entry, tensor: Some(tensor.name.clone()), expected, got }
    }
}

/// A tensor of floats in a file.
struct Source<'a> {
    file: &'a WeightFile,
    tensor: &'a Tensor,
    dtype: DType,
}

impl Source<'_> {
    /// Reads elements that are stored in order and without gaps.
    fn read_contiguous(&self, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let size = self.dtype.size();
        let per_piece = out.len().min(PIECE / size);
        let mut bytes = vec![0; per_piece * size];
        for (piece, out) in out.chunks_mut(per_piece).enumerate() {
            let first = start + piece * per_piece;
            let bytes = &mut bytes[..out.len() * size];
            self.read_elements(first, bytes)?;
            to_f32(self.dtype, bytes, out);
            if let Some(at) = out.iter().position(|value| !value.is_finite()) {
                return Err(self.not_finite(first + at, to_f64(self.dtype, &bytes[at * size..])));
            }
        }
        Ok(())
    }

    /// Reads elements of a transposed or sliced view, in the order of their positions in the file rather than their
    /// own, so that each part of the file is read once.
    fn read_view(&self, strides: &[usize], start: usize, out: &mut [f32]) -> Result<(), Error> {
        let size = self.dtype.size();
        let windows = Windows::new(&self.tensor.shape, strides, start, out.len());
        let mut bytes = vec![0; windows.longest(PIECE / size) * size];
        let mut window = 0..0;
        let mut first_not_finite: Option<(usize, f64)> = None;
        for visit in windows.visits() {
            if !window.contains(&visit.position) {
                window = visit.position..visit.block_end.min(visit.position + bytes.len() / size);
                self.read_elements(window.start, &mut bytes[..window.len() * size])?;
            }
            let value = to_f64(self.dtype, &bytes[(visit.position - window.start) * size..]);
            out[visit.element - start] = value as f32;
            if !(value as f32).is_finite() && first_not_finite.is_none_or(|(first, _)| visit.element < first) {
                first_not_finite = Some((visit.element, value));
            }
        }
        first_not_finite.map_or(Ok(()), |(index, value)| Err(self.not_finite(index, value)))
    }

    /// Reads elements from a position on, counted from the tensor's first element in the file.
    fn read_elements(&self, position: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_bytes(self.tensor, self.tensor.offset + (position * self.dtype.size()) as u64, bytes)
    }

    fn not_finite(&self, index: usize, value: f64) -> Error {
        Error::NotFinite { path: self.file.path.clone(), tensor: self.tensor.name.clone(), index, value }
    }
}
