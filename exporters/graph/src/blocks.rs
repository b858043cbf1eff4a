//! Block-wise 8-bit storage: see [`Storage::Int8Blocks`](crate::Storage::Int8Blocks).

use crate::encoder::Encoder;

/// The value that stands for 0.
const ZERO: u8 = 128;
/// The largest distance of a value from [`ZERO`], the same in both directions.
const RANGE: f32 = 127.0;

/// Divides rows into blocks and quantizes each with its own scale.
pub(crate) struct Int8Blocks {
    /// Numbers in a block.
    size: usize,
    /// Numbers in a row.
    columns: usize,
    /// Numbers of the current row that have been taken.
    column: usize,
    /// Numbers taken so far, in all rows.
    done: usize,
    /// The block being filled.
    block: Vec<f32>,
    /// The scales of the blocks before it.
    scales: Vec<u8>,
}

impl Int8Blocks {
    pub(crate) fn new(size: usize, columns: usize) -> Self {
        Self { size, columns, column: 0, done: 0, block: Vec::with_capacity(size), scales: Vec::new() }
    }

    fn close_block(&mut self, out: &mut Vec<u8>) {
        let largest = self.block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // Of a tiny block the quotient can be 0, which would divide by 0: such numbers are stored as 0.
        let scale = largest / RANGE;
        let quantize = |value: &f32| match scale > 0.0 {
            true => ((value / scale).round_ties_even().clamp(-RANGE, RANGE) + f32::from(ZERO)) as u8,
            false => ZERO,
        };
        out.extend(self.block.iter().map(quantize));
        out.extend(std::iter::repeat_n(ZERO, self.size - self.block.len()));
        self.scales.extend(scale.to_le_bytes());
        self.block.clear();
    }
}

impl Encoder for Int8Blocks {
    fn push(&mut self, values: &[f32]) -> Result<Vec<u8>, String> {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!(
                "expected finite numbers to quantize, got {} at element {}",
                values[at],
                self.done + at
            ));
        }
        let mut out = Vec::with_capacity(values.len() + self.size);
        let mut rest = values;
        while !rest.is_empty() {
            let wanted = (self.size - self.block.len()).min(self.columns - self.column);
            let (taken, left) = rest.split_at(wanted.min(rest.len()));
            self.block.extend_from_slice(taken);
            self.column += taken.len();
            rest = left;
            if self.column == self.columns {
                self.column = 0;
                self.close_block(&mut out);
            } else if self.block.len() == self.size {
                self.close_block(&mut out);
            }
        }
        self.done += values.len();
        Ok(out)
    }

    fn finish(&mut self) -> Vec<Vec<u8>> {
        vec![std::mem::take(&mut self.scales)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the storage's description says of the bytes: `(value - 128) * scale`.
    fn decode(values: &[u8], scales: &[u8], size: usize) -> Vec<f32> {
        let scales = scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        values
            .chunks(size)
            .zip(scales)
            .flat_map(|(block, scale)| block.iter().map(move |&v| (f32::from(v) - 128.0) * scale))
            .collect()
    }

    #[test]
    fn decoded_numbers_are_within_half_a_step_however_they_arrive() {
        let (rows, columns, size) = (3, 40, 16);
        let weights: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0 + 1e-3 * (i / 40) as f32).collect();
        let encode = |piece: usize| {
            let mut encoder = Int8Blocks::new(size, columns);
            let values: Vec<u8> = weights.chunks(piece).flat_map(|values| encoder.push(values).unwrap()).collect();
            (values, encoder.finish().remove(0))
        };
        let (values, scales) = encode(weights.len());
        assert_eq!((values.len(), scales.len()), (rows * 3 * size, rows * 3 * 4));
        for piece in [1, 7, 16, 39, 41] {
            assert_eq!(encode(piece), (values.clone(), scales.clone()), "pieces of {piece}");
        }
        let decoded = decode(&values, &scales, size);
        for (row, decoded) in decoded.chunks(3 * size).enumerate() {
            let weights = &weights[row * columns..(row + 1) * columns];
            for (block, weights) in weights.chunks(size).enumerate() {
                let largest = weights.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
                for (w, d) in weights.iter().zip(&decoded[block * size..]) {
                    assert!((w - d).abs() <= largest / 127.0 * 0.5001, "{w} was stored as {d}");
                }
            }
            assert_eq!(decoded[columns..], [0.0; 8], "the padding");
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_tiny_numbers_are_zeros() {
        let mut encoder = Int8Blocks::new(16, 32);
        let values = encoder.push(&[[0.0; 16], [f32::from_bits(1); 16]].concat()).unwrap();
        let decoded = decode(&values, &encoder.finish()[0], 16);
        assert!(decoded.iter().all(|value| value.abs() <= f32::from_bits(1)), "{decoded:?}");
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        let mut encoder = Int8Blocks::new(16, 16);
        encoder.push(&[1.0; 5]).unwrap();
        let problem = encoder.push(&[1.0, f32::NAN]).unwrap_err();
        assert_eq!(problem, "expected finite numbers to quantize, got NaN at element 6");
    }
}
