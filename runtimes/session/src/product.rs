//! A single matrix product, with which the peak rate of a runtime is measured.

use densessm_proto::DType;
use half::{bf16, f16};
use std::time::{Duration, Instant};

/// [`min_time`] returns the time of the run of this rank: on a virtual machine, single runs are occasionally timed far
/// shorter than all others.
const RANK: usize = 3;

/// `y = x W`: `[rows, inner] × [inner, columns]`, where `W` is a weight of the model. All three have one element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Product {
    /// Rows of `x`.
    pub rows: usize,
    /// Columns of `x`.
    pub inner: usize,
    /// Columns of `W`.
    pub columns: usize,
    /// The element type: fp32, fp16 or bf16.
    pub dtype: DType,
}

impl Product {
    /// Name of the model's input.
    pub const INPUT: &'static str = "x";
    /// Name of the model's output.
    pub const OUTPUT: &'static str = "y";

    /// Returns a product in fp32.
    pub const fn new(rows: usize, inner: usize, columns: usize) -> Self {
        Self { rows, inner, columns, dtype: DType::F32 }
    }

    /// Sets the element type: fp16 or bf16; any other is computed in fp32.
    pub const fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = match dtype {
            DType::F16 | DType::BF16 => dtype,
            _ => DType::F32,
        };
        self
    }

    /// Floating-point operations: a product and a sum for each element of `W` and row of `x`.
    pub fn flops(self) -> u64 {
        2 * (self.rows * self.inner * self.columns) as u64
    }

    /// Bytes of `W`.
    pub fn weight_bytes(self) -> u64 {
        (self.inner * self.columns * self.dtype.size()) as u64
    }

    /// `x` in fp32, row after row.
    pub fn input(self) -> Vec<f32> {
        (0..self.rows * self.inner).map(value).collect()
    }

    /// `x` in the product's element type, row after row, little endian.
    pub fn input_bytes(self) -> Vec<u8> {
        self.bytes(self.rows * self.inner)
    }

    /// The first values in the product's element type, which represents all of them exactly.
    pub(crate) fn bytes(self, count: usize) -> Vec<u8> {
        let values = (0..count).map(value);
        match self.dtype {
            DType::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            DType::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    }
}

/// Runs a function once to warm up, then repeatedly for `budget` and at least three times, and returns the time of the
/// third-fastest run.
///
/// # Errors
/// The first error of a run.
pub fn min_time<E>(budget: Duration, mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    run()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < RANK || begin.elapsed() < budget {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[RANK - 1])
}

/// Neither zeros nor subnormal numbers: on some processors the time of an operation depends on them.
pub(crate) fn value(at: usize) -> f32 {
    ((at % 61) as f32 - 30.0) / 64.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_time_it_is_warmed_up_once_and_run_three_times() {
        let mut runs = 0;
        let time = min_time(Duration::ZERO, || {
            runs += 1;
            Ok::<(), ()>(())
        });
        assert!(time.is_ok());
        assert_eq!(runs, 4);
    }

    #[test]
    fn every_element_type_represents_the_same_values() {
        let product = Product::new(2, 61, 3);
        let expected = product.input();
        assert_eq!(product.weight_bytes(), 61 * 3 * 4);
        let half = product.with_dtype(DType::F16);
        assert_eq!(half.weight_bytes(), 61 * 3 * 2);
        let pairs =
            |product: Product| product.input_bytes().chunks(2).map(|pair| [pair[0], pair[1]]).collect::<Vec<_>>();
        let wide: Vec<f32> = pairs(half).into_iter().map(|pair| f16::from_le_bytes(pair).to_f32()).collect();
        assert_eq!(wide, expected);
        let wide = pairs(product.with_dtype(DType::BF16)).into_iter().map(|pair| bf16::from_le_bytes(pair).to_f32());
        assert_eq!(wide.collect::<Vec<_>>(), expected);
        assert_eq!(product.with_dtype(DType::I8), product);
    }

    #[test]
    fn a_run_that_fails_is_the_last() {
        let mut runs = 0;
        let time = min_time(Duration::MAX, || {
            runs += 1;
            if runs == 2 { Err(runs) } else { Ok(()) }
        });
        assert_eq!(time, Err(2));
    }
}
