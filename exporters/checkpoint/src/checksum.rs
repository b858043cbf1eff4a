//! Checksums of parts of a file, verified with the bytes that are read anyway.
//!
//! Weights are mostly read once, from the first byte to the last. A checksum follows such reads and is complete with
//! the last of them. Bytes that were skipped are left for [`Checksum::remaining`], so that after reading those, too,
//! every part has been verified whatever the order of the reads.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The CRC-32 of a range of bytes of a file, and how much of the range has been verified.
#[derive(Debug)]
pub(crate) struct Checksum {
    /// Name of the range, for messages.
    pub(crate) entry: String,
    range: Range<u64>,
    expected: u32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Position of the first byte that is not included yet.
    next: u64,
    /// The checksum of the bytes before it.
    crc: u32,
}

/// A checksum that is not the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChecksumMismatch {
    pub(crate) expected: u32,
    pub(crate) got: u32,
}

impl Checksum {
    pub(crate) fn new(entry: String, range: Range<u64>, expected: u32) -> Self {
        let state = Mutex::new(State { next: range.start, crc: 0 });
        Self { entry, range, expected, state }
    }

    /// Includes bytes that were read at a position of the file, as far as they continue those included so far.
    ///
    /// The error is returned for the last bytes of the range and again for every later read.
    pub(crate) fn update(&self, offset: u64, bytes: &[u8]) -> Result<(), ChecksumMismatch> {
        let mut state = self.state();
        let end = (offset + bytes.len() as u64).min(self.range.end);
        if (offset..end).contains(&state.next) {
            let fresh = &bytes[(state.next - offset) as usize..(end - offset) as usize];
            let mut hasher = crc32fast::Hasher::new_with_initial(state.crc);
            hasher.update(fresh);
            *state = State { next: end, crc: hasher.finalize() };
        }
        self.check(*state)
    }

    /// Returns the positions of the bytes that are not included yet; none once the range has been verified.
    pub(crate) fn remaining(&self) -> Result<Range<u64>, ChecksumMismatch> {
        let state = *self.state();
        self.check(state)?;
        Ok(state.next..self.range.end)
    }

    fn check(&self, state: State) -> Result<(), ChecksumMismatch> {
        if state.next == self.range.end && state.crc != self.expected {
            return Err(ChecksumMismatch { expected: self.expected, got: state.crc });
        }
        Ok(())
    }

    /// A panic elsewhere leaves the state as it was before an update, which is still right.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 10 bytes before, 256 in, and some after the range.
    fn file() -> Vec<u8> {
        (0..300).map(|i| (i * 7 % 251) as u8).collect()
    }

    fn checksum(expected: u32) -> Checksum {
        Checksum::new("data/0".to_owned(), 10..266, expected)
    }

    #[test]
    fn reads_in_any_order_leave_what_they_skipped() {
        let file = file();
        let right = crc32fast::hash(&file[10..266]);
        type Reads<'a> = &'a [(usize, usize)];
        let cases: [(Reads<'_>, Range<u64>); 8] = [
            (&[(0, 300)], 266..266),
            (&[(10, 266)], 266..266),
            (&[(10, 100), (100, 266)], 266..266),
            (&[(10, 100), (50, 200), (10, 266)], 266..266),
            (&[], 10..266),
            (&[(11, 266)], 10..266),
            (&[(100, 266), (10, 100)], 100..266),
            (&[(10, 100), (101, 266)], 100..266),
        ];
        for (reads, remaining) in cases {
            let checksum = checksum(right);
            for &(start, end) in reads {
                checksum.update(start as u64, &file[start..end]).unwrap();
            }
            assert_eq!(checksum.remaining(), Ok(remaining.clone()), "{reads:?}");
            checksum.update(remaining.start, &file[remaining.start as usize..remaining.end as usize]).unwrap();
            assert_eq!(checksum.remaining(), Ok(266..266), "{reads:?}");
        }
    }

    #[test]
    fn a_mismatch_is_reported_at_the_last_byte_and_ever_after() {
        let file = file();
        let right = crc32fast::hash(&file[10..266]);
        let checksum = checksum(right ^ 1);
        assert_eq!(checksum.update(10, &file[10..265]), Ok(()));
        let mismatch = Err(ChecksumMismatch { expected: right ^ 1, got: right });
        assert_eq!(checksum.update(265, &file[265..266]), mismatch);
        assert_eq!(checksum.update(10, &file[10..11]), mismatch);
        assert_eq!(checksum.remaining().map(drop), mismatch);
    }

    #[test]
    fn an_empty_range_has_a_checksum_too() {
        assert_eq!(Checksum::new(String::new(), 10..10, 0).remaining(), Ok(10..10));
        assert!(Checksum::new(String::new(), 10..10, 7).remaining().is_err());
    }
}
