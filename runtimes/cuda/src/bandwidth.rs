//! The rate at which a GPU reads its memory, measured with a kernel that reads a buffer far larger than any cache.

use crate::{Arguments, Buffer, Cache, Compiler, Context, Driver, Error, Event, LaunchShape, Nvrtc, Stream, Unit};
use std::time::{Duration, Instant};

/// Size of the buffer, unless memory is short.
const BUFFER_BYTES: usize = 2 << 30;
const THREADS: u32 = 512;
/// Blocks per multiprocessor, for which the kernel is compiled.
const BLOCKS: u32 = 2;
/// A time of this rank among those of all launches is returned: a single one may be disturbed in either direction.
const RANK: usize = 3;
/// What the buffer is filled with.
const BYTE: u8 = 1;

/// Returns the kernel.
pub fn read_unit() -> Unit {
    Unit::new("read", include_str!("read.cu"), &[], Vec::new())
}

/// Measures the bytes per second that a GPU reads of its memory: the third-fastest launch of those that take `budget`
/// together.
///
/// # Errors
/// When the driver or NVRTC is missing or too old, there is no such GPU, or no memory for the buffer.
pub fn read_bandwidth(ordinal: usize, budget: Duration) -> Result<f64, Error> {
    let context = Context::primary(&Driver::open()?, ordinal)?;
    let compiler = Compiler::new(Nvrtc::open()?, Cache::from_environment());
    let compiled = compiler.compile(&read_unit(), context.info().architecture)?;
    let function = context.load(&compiled.image)?.function("read")?;
    let stream = Stream::new(&context)?;

    let (free, _) = context.memory()?;
    let words = BUFFER_BYTES.min(free / 4) / 16;
    let buffer: Buffer<u8> = Buffer::new(&context, 16 * words)?;
    buffer.fill_bytes(&stream, BYTE)?;
    let result: Buffer<u32> = Buffer::new(&context, 1)?;
    let shape = LaunchShape::new([BLOCKS * context.info().multiprocessors, 1, 1], THREADS);
    let arguments = Arguments::new().address(buffer.address()).words(&[words as u64]).address(result.address());
    let (before, after) = (Event::new(&context)?, Event::new(&context)?);
    let launch = || {
        result.fill_bytes(&stream, 0)?;
        before.record(&stream)?;
        // SAFETY: these are the kernel's parameters; the buffer has `words` words of 16 bytes, the result one of 4, and
        // both outlive the launch, which is waited for below.
        unsafe { function.launch(&stream, &shape, &arguments) }?;
        after.record(&stream)?;
        after.milliseconds_since(&before)
    };
    // The first launch warms up.
    launch()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < RANK || begin.elapsed() < budget {
        times.push(launch()?);
    }
    check(&result, &stream, words)?;
    times.sort_by(f32::total_cmp);
    Ok(16.0 * words as f64 / (f64::from(times[RANK - 1]) / 1e3))
}

/// Checks the sum of the last launch, modulo 2^32: that every word was read once.
fn check(result: &Buffer<u32>, stream: &Stream, words: usize) -> Result<(), Error> {
    let mut got = [0];
    result.read(stream, 0, &mut got)?;
    let expected = u32::from_le_bytes([BYTE; 4]).wrapping_mul(4 * words as u32);
    if got == [expected] {
        return Ok(());
    }
    Err(Error::argument("read", format!("expected the sum {expected} of {words} words, got {}", got[0])))
}
