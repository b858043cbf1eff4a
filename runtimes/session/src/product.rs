//! A single matrix product, with which the peak rate of a runtime is measured.

use std::time::{Duration, Instant};

/// [`min_time`] returns the time of the run of this rank: on a virtual machine, single runs are occasionally timed far
/// shorter than all others.
const RANK: usize = 3;

/// `y = x W` in fp32: `[rows, inner] × [inner, columns]`, where `W` is a weight of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of `x`.
    pub rows: usize,
    /// Columns of `x`.
    pub inner: usize,
    /// Columns of `W`.
    pub columns: usize,
}

impl Product {
    /// Name of the model's input.
    pub const INPUT: &'static str = "x";
    /// Name of the model's output.
    pub const OUTPUT: &'static str = "y";

    /// Floating-point operations: a product and a sum for each element of `W` and row of `x`.
    pub fn flops(self) -> u64 {
        2 * (self.rows * self.inner * self.columns) as u64
    }

    /// Bytes of `W`.
    pub fn weight_bytes(self) -> u64 {
        (self.inner * self.columns * size_of::<f32>()) as u64
    }

    /// `x`, row after row.
    pub fn input(self) -> Vec<f32> {
        (0..self.rows * self.inner).map(value).collect()
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
    fn a_run_that_fails_is_the_last() {
        let mut runs = 0;
        let time = min_time(Duration::MAX, || {
            runs += 1;
            if runs == 2 { Err(runs) } else { Ok(()) }
        });
        assert_eq!(time, Err(2));
    }
}
