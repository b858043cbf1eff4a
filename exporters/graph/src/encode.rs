//! Encoding weights: read, prepared and stored piece by piece, so that a weight of any size passes through little
//! memory.
//!
//! The tensors of a weight are read once. The bytes of its first initializer leave while it is read; those of the
//! others, which are small beside it (the scales of blocks), are collected and follow.

use crate::{DType, Error, Initializer, Part, Prepare, Storage, Weight, blocks::Int8Blocks};
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Elements in a piece: 1 MiB of fp32.
const PIECE: usize = 1 << 18;

/// Turns a weight's prepared numbers, in row-major order, into the bytes of its initializers.
pub(crate) trait Encoder {
    /// Takes the next numbers and returns the next bytes of the first initializer.
    fn push(&mut self, values: &[f32]) -> Result<Vec<u8>, String>;

    /// Returns the bytes of the other initializers.
    fn finish(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

impl Weight {
    /// Reads the weight's tensors and writes the bytes of its initializers.
    ///
    /// `read` fills its slice with elements of a tensor, in row-major order, from the given index on; it is asked for
    /// each element once, tensor after tensor, in ascending order. `write` takes the next bytes of an initializer; the
    /// initializers follow one another in the order of [`Weight::initializers`]. In memory at once are one piece of 1
    /// MiB, or all tensors of this weight where they are transposed, and the initializers after the first.
    ///
    /// # Errors
    /// Those of `read` and `write`, and a number that the storage cannot hold.
    pub fn encode<E: From<Error>>(
        &self,
        mut read: impl FnMut(&Part, usize, &mut [f32]) -> Result<(), E>,
        mut write: impl FnMut(&Initializer, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((first, others)) = self.initializers.split_first() else { return Ok(()) };
        let mut encoder: Box<dyn Encoder> = match self.storage {
            Storage::Float(dtype) => Box::new(Float { dtype, done: 0 }),
            Storage::Int8Blocks { size } => Box::new(Int8Blocks::new(size, self.prepared.last().copied().unwrap_or(1))),
        };
        self.prepared_pieces(&mut read, &mut |values| {
            let bytes = encoder.push(values).map_err(|problem| self.error(problem))?;
            // A piece may end before the first block does.
            if bytes.is_empty() { Ok(()) } else { write(first, bytes) }
        })?;
        others.iter().zip(encoder.finish()).try_for_each(|(initializer, bytes)| write(initializer, bytes))
    }

    /// Reads the tensors and hands on their prepared numbers, in row-major order.
    fn prepared_pieces<E: From<Error>>(
        &self,
        read: &mut impl FnMut(&Part, usize, &mut [f32]) -> Result<(), E>,
        push: &mut impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        match (self.prepare, self.prepared.as_slice()) {
            // Both transpose a matrix: the depthwise kernel [channels, 1, taps] is one of [channels, taps].
            (Prepare::Transpose | Prepare::Taps, &[columns, rows]) => {
                let mut matrix = vec![0.0; rows * columns];
                let mut rest = &mut matrix[..];
                for part in &self.parts {
                    let (values, below) = rest.split_at_mut(part.elements());
                    read(part, 0, values)?;
                    rest = below;
                }
                let per_piece = (PIECE / rows.max(1)).max(1);
                let mut piece = Vec::new();
                for first in (0..columns).step_by(per_piece) {
                    transpose(&matrix, columns, first, per_piece.min(columns - first), &mut piece);
                    push(&piece)?;
                }
            }
            _ => {
                for part in &self.parts {
                    let elements = part.elements();
                    let mut piece = vec![0.0; PIECE.min(elements)];
                    for start in (0..elements).step_by(PIECE) {
                        let piece = &mut piece[..PIECE.min(elements - start)];
                        read(part, start, piece)?;
                        if self.prepare == Prepare::NegExp {
                            piece.iter_mut().for_each(|w| *w = -f64::from(*w).exp() as f32);
                        }
                        push(piece)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Stores numbers in a floating-point type.
struct Float {
    dtype: DType,
    /// Numbers stored so far.
    done: usize,
}

impl Encoder for Float {
    fn push(&mut self, values: &[f32]) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; values.len() * self.dtype.size()];
        match self.dtype {
            DType::F64 => fill(&mut bytes, values, |value| f64::from(*value).to_le_bytes()),
            DType::F32 => fill(&mut bytes, values, |value| value.to_le_bytes()),
            DType::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                self.check(values, &halves, |half| half.is_infinite())?;
                fill(&mut bytes, &halves, |half| half.to_le_bytes());
            }
            DType::BF16 => {
                let mut halves = vec![bf16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                self.check(values, &halves, |half| half.is_infinite())?;
                fill(&mut bytes, &halves, |half| half.to_le_bytes());
            }
            dtype => return Err(format!("expected a floating-point type to store it in, got {dtype}")),
        }
        self.done += values.len();
        Ok(bytes)
    }
}

impl Float {
    fn check<T>(&self, values: &[f32], stored: &[T], infinite: impl Fn(&T) -> bool) -> Result<(), String> {
        let overflow = values.iter().zip(stored).position(|(value, stored)| value.is_finite() && infinite(stored));
        overflow.map_or(Ok(()), |at| {
            let (index, dtype) = (self.done + at, self.dtype);
            Err(format!("element {index} is {}, which is too large for {dtype}; store it in fp32 or bf16", values[at]))
        })
    }
}

/// Writes values as chunks of bytes.
fn fill<T, const N: usize>(bytes: &mut [u8], values: &[T], chunk: impl Fn(&T) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = chunk(value);
    }
}

/// Columns `first .. first + count` of a matrix, each as a row. Works in square tiles, so that reads and writes both
/// stay in the cache.
fn transpose(matrix: &[f32], columns: usize, first: usize, count: usize, out: &mut Vec<f32>) {
    const TILE: usize = 16;
    let rows = matrix.len() / columns;
    out.clear();
    out.resize(rows * count, 0.0);
    for row in (0..rows).step_by(TILE) {
        for column in (0..count).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..count.min(column + TILE) {
                    out[c * rows + r] = matrix[r * columns + first + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_transpose_join_to_the_transpose() {
        let (rows, columns) = (37, 21);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut joined = Vec::new();
        let mut piece = Vec::new();
        for first in (0..columns).step_by(5) {
            transpose(&matrix, columns, first, 5.min(columns - first), &mut piece);
            joined.extend_from_slice(&piece);
        }
        let expected: Vec<f32> = (0..columns).flat_map(|c| (0..rows).map(move |r| (r * columns + c) as f32)).collect();
        assert_eq!(joined, expected);
    }

    #[test]
    fn halves_are_rounded_to_nearest_even() {
        let step = 2_f32.powi(-10);
        for (value, expected) in [(1.0 + step / 2.0, 0x3c00), (1.0 + 1.5 * step, 0x3c02), (65519.0, 0x7bff)] {
            let bytes = Float { dtype: DType::F16, done: 0 }.push(&[value]).unwrap();
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{value}");
        }
        for (value, expected) in [(1.0 + 2_f32.powi(-8), 0x3f80), (1.0 + 3.0 * 2_f32.powi(-8), 0x3f82)] {
            let bytes = Float { dtype: DType::BF16, done: 0 }.push(&[value]).unwrap();
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{value}");
        }
    }

    #[test]
    fn a_finite_number_never_becomes_infinite() {
        for (dtype, value) in [(DType::F16, 65520.0), (DType::F16, -1e9), (DType::BF16, f32::MAX)] {
            let mut encoder = Float { dtype, done: 0 };
            encoder.push(&[0.0; 3]).unwrap();
            let problem = encoder.push(&[1.0, value]).unwrap_err();
            assert!(problem.starts_with("element 4 is") && problem.contains(dtype.name()), "{problem}");
        }
        let infinity = Float { dtype: DType::F16, done: 0 }.push(&[f32::INFINITY]).unwrap();
        assert_eq!(infinity, [0x00, 0x7c]);
    }
}
