//! How fast the processor reads memory: plain sums over a buffer that no cache holds.

use super::machine;
use densessm_session::Error;
use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// The size of the buffer: far more than any cache holds, unless memory is short.
const BUFFER_BYTES: u64 = 1 << 30;
/// How often it is read; the best pass counts.
const PASSES: usize = 6;
/// Sums kept apart, so that one load need not wait for the addition before it.
const LANES: usize = 32;

/// Bytes per second that `threads` threads read together.
///
/// # Errors
/// When there is no memory for the buffer.
pub(super) fn read(threads: usize) -> Result<f64, Error> {
    let bytes = machine::available_bytes().map_or(BUFFER_BYTES / 4, |free| BUFFER_BYTES.min(free / 4));
    let share = (bytes as usize / size_of::<u64>() / threads).next_multiple_of(LANES).max(LANES);
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(share * threads).map_err(|error| Error::Runtime {
        what: "measuring the read bandwidth".to_owned(),
        problem: format!("a buffer of {bytes} bytes: {error}"),
    })?;
    // Written before it is read: pages that were never written all show one page of zeros, which stays in the cache.
    buffer.extend((0..(share * threads) as u64).map(|at| at ^ 0x5555));
    let best = (0..PASSES).map(|_| pass(&buffer, share)).min().unwrap_or(Duration::MAX);
    Ok(size_of_val(buffer.as_slice()) as f64 / best.as_secs_f64())
}

fn pass(buffer: &[u64], share: usize) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for part in buffer.chunks(share) {
            scope.spawn(move || black_box(sum(part)));
        }
    });
    start.elapsed()
}

fn sum(part: &[u64]) -> u64 {
    let mut sums = [0_u64; LANES];
    for lane in part.as_chunks::<LANES>().0 {
        for (sum, value) in sums.iter_mut().zip(lane) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..4 * LANES as u64).collect();
        assert_eq!(sum(&words), words.iter().sum::<u64>());
    }
}
