//! Reading a tensor's elements: by position, through a buffer of fixed size, widened to fp32.
//!
//! Row-major elements are one run of the file. Those of a transposed or sliced view are visited in the order of their
//! places in the file instead of their own, so that each part of the file is read once whatever the view.

use crate::{Checkpoint, DType, Error, Tensor, checkpoint::WeightFile};
use half::{bf16, f16};
use std::{fs::File, io};

/// Bytes read at once.
const PIECE: usize = 1 << 20;
/// Of a view with gaps, parts are read whole in which one element of so many is wanted.
const SPARSEST: usize = 8;

impl Checkpoint {
    /// Reads elements `start .. start + out.len()` of one of this checkpoint's tensors, in row-major order, as fp32.
    ///
    /// # Errors
    /// When the tensor has no such elements, the file cannot be read, the tensor is not one of floats, or an element
    /// is not finite as fp32.
    pub fn read(&self, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let file = &self.files[tensor.file];
        let problem = |problem: String| Error::file(&file.path, format!("{}: {problem}", tensor.name));
        if let DType::Other(..) = tensor.dtype {
            return Err(problem(format!("expected F32, F16, BF16 or F64, got {}", tensor.dtype)));
        }
        if start.checked_add(out.len()).is_none_or(|end| end > tensor.elements()) {
            let (elements, count) = (tensor.elements(), out.len());
            return Err(problem(format!("expected a part of its {elements} elements, got {count} from {start} on")));
        }
        if out.is_empty() {
            return Ok(());
        }
        match &tensor.strides {
            None => read_run(file, tensor, start, out),
            Some(strides) => gather(file, tensor, strides, start, out),
        }
    }
}

fn not_finite(file: &WeightFile, tensor: &Tensor, index: usize, value: f64) -> Error {
    Error::NotFinite { path: file.path.clone(), tensor: tensor.name.clone(), index, value }
}

/// Reads elements that lie one behind the other.
fn read_run(file: &WeightFile, tensor: &Tensor, start: usize, out: &mut [f32]) -> Result<(), Error> {
    let size = tensor.dtype.size();
    let per_piece = out.len().min(PIECE / size);
    let mut bytes = vec![0; per_piece * size];
    for (piece, out) in out.chunks_mut(per_piece).enumerate() {
        let first = start + piece * per_piece;
        let bytes = &mut bytes[..out.len() * size];
        read_exact_at(&file.file, bytes, tensor.offset + (first * size) as u64).map_err(Error::io(&file.path))?;
        widen(tensor.dtype, bytes, out);
        if let Some(at) = out.iter().position(|value| !value.is_finite()) {
            let value = number(tensor.dtype, &bytes[at * size..]);
            return Err(not_finite(file, tensor, first + at, value));
        }
    }
    Ok(())
}

/// An axis of the part of a view that is read.
struct Axis {
    size: usize,
    /// Elements of the file between neighbours along it.
    stride: usize,
    /// Elements of the tensor, in row-major order, between neighbours along it.
    step: usize,
}

/// Reads elements that lie scattered. Their places are all different, and nested: an axis steps over all that the axes
/// of smaller strides span.
fn gather(file: &WeightFile, tensor: &Tensor, strides: &[usize], start: usize, out: &mut [f32]) -> Result<(), Error> {
    let size = tensor.dtype.size();
    let (axes, mut element, mut place) = part(&tensor.shape, strides, start, start + out.len() - 1);
    let (count, span) = dense(&axes);
    let total: usize = axes.iter().map(|axis| axis.size).product();
    let mut bytes = vec![0; (PIECE / size).min(span) * size];
    let (mut window, mut end) = (0..0, 0);
    let mut position = vec![0; axes.len()];
    let mut flaw: Option<(usize, f64)> = None;
    for visited in 0..total {
        if visited % count == 0 {
            end = place + span;
        }
        if (start..start + out.len()).contains(&element) {
            if !window.contains(&place) {
                window = place..end.min(place + bytes.len() / size);
                let bytes = &mut bytes[..window.len() * size];
                let offset = tensor.offset + (place * size) as u64;
                read_exact_at(&file.file, bytes, offset).map_err(Error::io(&file.path))?;
            }
            let value = number(tensor.dtype, &bytes[(place - window.start) * size..]);
            out[element - start] = value as f32;
            if !(value as f32).is_finite() && flaw.is_none_or(|(first, _)| element < first) {
                flaw = Some((element, value));
            }
        }
        for (axis, position) in axes.iter().zip(&mut position).rev() {
            if *position + 1 < axis.size {
                *position += 1;
                element += axis.step;
                place += axis.stride;
                break;
            }
            element -= *position * axis.step;
            place -= *position * axis.stride;
            *position = 0;
        }
    }
    flaw.map_or(Ok(()), |(index, value)| Err(not_finite(file, tensor, index, value)))
}

/// The smallest box of a view that holds elements `first ..= last`: its axes, outermost in the file first, with the
/// element and the place it begins at.
fn part(shape: &[usize], strides: &[usize], mut first: usize, mut last: usize) -> (Vec<Axis>, usize, usize) {
    let (mut axes, mut element, mut place) = (Vec::new(), 0, 0);
    let mut step: usize = shape.iter().product();
    for (&size, &stride) in shape.iter().zip(strides) {
        step /= size;
        if axes.is_empty() {
            let (from, to) = (first / step, last / step);
            element += from * step;
            place += from * stride;
            (first, last) = (first - from * step, last - from * step);
            if from < to {
                axes.push(Axis { size: to - from + 1, stride, step });
            }
        } else {
            axes.push(Axis { size, stride, step });
        }
    }
    axes.sort_by_key(|axis| std::cmp::Reverse(axis.stride));
    (axes, element, place)
}

/// Number and span of elements of the largest blocks without large gaps.
fn dense(axes: &[Axis]) -> (usize, usize) {
    let (mut densest, mut count, mut span) = ((1, 1), 1, 1);
    for axis in axes.iter().rev() {
        count *= axis.size;
        span += (axis.size - 1) * axis.stride;
        if span / count < SPARSEST {
            densest = (count, span);
        }
    }
    densest
}

/// One element, from the beginning of `bytes`.
fn number(dtype: DType, bytes: &[u8]) -> f64 {
    fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match dtype {
        DType::F32 => f32::from_le_bytes(first(bytes)).into(),
        DType::F16 => f16::from_le_bytes(first(bytes)).into(),
        DType::BF16 => bf16::from_le_bytes(first(bytes)).into(),
        DType::F64 => f64::from_le_bytes(first(bytes)),
        DType::Other(..) => f64::NAN,
    }
}

/// [`number`] for many elements at once.
fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::BF16 => each(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::F64 => each(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
        DType::Other(..) => out.fill(f32::NAN),
    }
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
