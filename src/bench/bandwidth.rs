//! The rate at which the processor reads memory, measured by sums over a buffer larger than any cache.

use super::machine;
use densessm_session::{Error, min_time};
use std::{hint::black_box, thread, time::Duration};

/// Size of the buffer, unless memory is short: far larger than any cache.
const BUFFER_BYTES: u64 = 1 << 30;
/// Number of streams that each thread reads alternately.
const STREAMS: usize = 4;
/// The time for which reading is repeated.
const BUDGET: Duration = Duration::from_millis(500);

/// Returns the bytes per second that `threads` threads read together.
///
/// # Errors
/// When there is no memory for the buffer.
pub(super) fn read(threads: usize) -> Result<f64, Error> {
    let bytes = machine::available_bytes().map_or(BUFFER_BYTES / 4, |free| BUFFER_BYTES.min(free / 4));
    let share = (bytes as usize / size_of::<u64>() / threads).max(STREAMS);
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(share * threads).map_err(|error| Error::Runtime {
        what: "measuring the read bandwidth".to_owned(),
        problem: format!("a buffer of {bytes} bytes: {error}"),
    })?;
    // Written before it is read: pages that were never written are all mapped to one page of zeros, which stays in the
    // cache.
    buffer.extend((0..(share * threads) as u64).map(|at| at ^ 0x5555));
    let time = min_time(BUDGET, || {
        pass(&buffer, share);
        Ok::<(), Error>(())
    })?;
    Ok(size_of_val(buffer.as_slice()) as f64 / time.as_secs_f64())
}

fn pass(buffer: &[u64], share: usize) {
    thread::scope(|scope| {
        for part in buffer.chunks(share) {
            scope.spawn(move || black_box(sum(part)));
        }
    });
}

/// Returns the sum of a part, read in several streams: a single one does not saturate memory.
fn sum(part: &[u64]) -> u64 {
    let quarter = part.len() / STREAMS;
    let (left, right) = part[..STREAMS * quarter].split_at(2 * quarter);
    let ((a, b), (c, d)) = (left.split_at(quarter), right.split_at(quarter));
    let rest: u64 = part[STREAMS * quarter..].iter().fold(0, |sum, word| sum.wrapping_add(*word));
    a.iter()
        .zip(b)
        .zip(c.iter().zip(d))
        .fold(rest, |sum, ((a, b), (c, d))| sum.wrapping_add(*a).wrapping_add(*b).wrapping_add(*c).wrapping_add(*d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for length in [0, 3, 4, 1000, 1003] {
            let words: Vec<u64> = (0..length).collect();
            assert_eq!(sum(&words), words.iter().sum::<u64>(), "{length}");
        }
    }
}
