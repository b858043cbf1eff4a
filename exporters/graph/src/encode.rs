//! Encoding weights: read, prepared and stored piece by piece, so that a weight of any size passes through little
//! memory.
//!
//! The tensors of a weight are read once. The bytes of its first initializer are written while it is read; those
//! of the others, which are much smaller (the scales of blocks), are collected and written afterwards.

use crate::{
    Error, Initializer, Part, Prepare, Storage, Weight,
    blocks::Int8Blocks,
    encoder::{Encoder, Float},
};

/// Elements in a piece: 1 MiB of fp32.
const PIECE: usize = 1 << 18;

impl Weight {
    /// Reads the weight's tensors and writes the bytes of its initializers.
    ///
    /// `read` fills its slice with elements of a tensor, in row-major order, from the given index on; it is called
    /// for each element once, tensor after tensor, in ascending order. `write` takes the next bytes of an initializer; the
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
            Storage::Float(dtype) => Box::new(Float::new(dtype)),
            Storage::Int8Blocks { size } => Box::new(Int8Blocks::new(size, self.prepared.last().copied().unwrap_or(1))),
        };
        self.prepared_pieces(&mut read, &mut |values| {
            let bytes = encoder.push(values).map_err(|problem| self.error(problem))?;
            // A piece may end before the first block does.
            if bytes.is_empty() { Ok(()) } else { write(first, bytes) }
        })?;
        others.iter().zip(encoder.finish()).try_for_each(|(initializer, bytes)| write(initializer, bytes))
    }

    /// Reads the tensors and pushes their prepared numbers, in row-major order.
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
                    let Some((values, below)) = rest.split_at_mut_checked(part.elements()) else {
                        return Err(self.error("its tensors have more elements than it has").into());
                    };
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
}
