//! Scratch memory of one stream.
//!
//! Launches of a stream run one after the other, so that all of them use the same memory, which grows as needed. Memory
//! that a captured graph refers to is kept when it is replaced by a larger block.

use densessm_cuda::{Buffer, Error, Plain, Stream};

/// Memory begins at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Scratch memory of one stream.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Growing<u8>,
    counters: Growing<u32>,
}

struct Growing<T> {
    current: Option<Buffer<T>>,
    /// Whether a captured graph uses the current block.
    captured: bool,
    /// Blocks that captured graphs use.
    kept: Vec<Buffer<T>>,
}

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self { current: None, captured: false, kept: Vec::new() }
    }
}

impl<T: Plain> Growing<T> {
    /// The address of at least so many elements, and whether they have just been allocated.
    fn at_least(&mut self, stream: &Stream, len: usize) -> Result<(&Buffer<T>, bool), Error> {
        let capturing = stream.is_capturing()?;
        let fits = self.current.as_ref().is_some_and(|buffer| buffer.len() >= len);
        if !fits {
            if capturing {
                return Err(Error::Argument {
                    argument: "stream",
                    problem: "expected a call of these sizes before one that is captured, got none".to_owned(),
                });
            }
            // What is replaced is freed once the stream no longer uses it, which the driver waits for.
            let replaced = self.current.take();
            if std::mem::take(&mut self.captured) {
                self.kept.extend(replaced);
            } else {
                drop(replaced);
            }
        }
        self.captured |= capturing;
        let buffer = match self.current.take() {
            Some(buffer) => buffer,
            None => Buffer::new(stream.context(), len)?,
        };
        Ok((self.current.insert(buffer), !fits))
    }
}

impl Scratch {
    /// Memory of these sizes in bytes, each part aligned.
    pub(super) fn memory<const N: usize>(&mut self, stream: &Stream, bytes: [usize; N]) -> Result<[u64; N], Error> {
        let too_large = || Error::Argument { argument: "bytes", problem: "expected sizes below 2^64 bytes".to_owned() };
        let mut offsets = [0; N];
        let mut total = 0_usize;
        for (offset, bytes) in offsets.iter_mut().zip(bytes) {
            *offset = total as u64;
            total = bytes
                .checked_next_multiple_of(ALIGNMENT)
                .and_then(|bytes| total.checked_add(bytes))
                .ok_or_else(too_large)?;
        }
        let (buffer, _) = self.memory.at_least(stream, total)?;
        let start = buffer.address();
        Ok(offsets.map(|offset| start + offset))
    }

    /// Counters that are 0 before and after each launch.
    pub(super) fn counters(&mut self, stream: &Stream, count: usize) -> Result<u64, Error> {
        let (buffer, new) = self.counters.at_least(stream, count)?;
        if new {
            buffer.fill_bytes(stream, 0)?;
        }
        Ok(buffer.address())
    }
}
