//! `y_t = silu(bias + Σ_k w_k ∘ u_{t-K+1+k})`: a depthwise convolution with carried inputs.
//!
//! The first tokens, whose windows reach into the carried inputs, are computed in blocks of channels; a block's carried
//! inputs are transposed to `[K-1, block]` first, so that tokens before the call and in it are read in the same way. The
//! tokens after those are computed by whole rows, which are contiguous in memory.

use super::{
    CpuKernel, Level,
    parts::Parts,
    simd::{Functions, Simd, Work},
};
use crate::{
    BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, bound::Lengths, operand::f32_results,
};
use densessm_proto::{
    DType,
    operators::{self, Schema},
    position,
};

const SCHEMA: &Schema = &operators::CAUSAL_CONV;

pub(super) const KERNEL: CpuKernel =
    KernelRegistration::new(SCHEMA, DType::F32, |_, level| Ok(Box::new(CausalConv { level: *level })));

/// Channels of a block: some cache lines of every token.
const BLOCK: usize = 64;
/// Tokens that are computed by blocks of channels, unless a window is longer.
const HEAD: usize = 16;
/// Tokens after those that one task computes.
const SPAN: usize = 16;
/// Vectors whose sums are accumulated together.
const WIDE: usize = 4;
/// Carried inputs per channel that fit the buffer on the stack.
const FEW: usize = 7;
/// The smallest number of channels times tokens that is worth waking other threads for.
const WORTH_SHARING: usize = 1 << 13;

#[derive(Debug)]
struct CausalConv {
    level: Level,
}

/// The operands and sizes of a call.
struct ConvCall<'a> {
    batch: usize,
    time: usize,
    channels: usize,
    taps: usize,
    u: &'a [f32],
    weight: &'a [f32],
    state: &'a [f32],
    bias: Option<&'a [f32]>,
    lengths: Lengths<'a>,
}

impl<'a> ConvCall<'a> {
    fn new(call: &BoundCall<'_, Operand<'a>>) -> Result<Self, Error> {
        let time = call.size(position!(SCHEMA, dimension "time"));
        Ok(Self {
            batch: call.size(position!(SCHEMA, dimension "batch")),
            time,
            channels: call.size(position!(SCHEMA, dimension "channels")),
            taps: call.size(position!(SCHEMA, dimension "taps")),
            u: call.f32(position!(SCHEMA, operand "u"))?,
            weight: call.f32(position!(SCHEMA, operand "weight"))?,
            state: call.f32(position!(SCHEMA, operand "state"))?,
            bias: call.optional_f32(position!(SCHEMA, operand "bias")),
            lengths: call.lengths(position!(SCHEMA, operand "lengths"), time)?,
        })
    }
}

impl Kernel for CausalConv {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let call = ConvCall::new(call)?;
        let [y, present] = f32_results(results)?;
        let (y, present) = (Parts::new(y), Parts::new(present));
        let head = call.time.min(HEAD.max(call.taps));
        let blocks = call.channels.div_ceil(BLOCK);
        let spans = (call.time - head).div_ceil(SPAN);
        let run_task = |task: usize| {
            let (row, task) = (task / (blocks + spans), task % (blocks + spans));
            match task.checked_sub(blocks) {
                None => self.level.run(Block { call: &call, row, first: task * BLOCK, head, y, present }),
                Some(span) => self.level.run(Span { call: &call, row, first: head + span * SPAN, y }),
            }
        };
        let tasks = call.batch * (blocks + spans);
        if call.batch * call.time * call.channels < WORTH_SHARING {
            (0..tasks).for_each(run_task);
            return Ok(());
        }
        pool.run(tasks, &run_task)
    }
}

/// A block of channels of one row over the first tokens, and the inputs that the row carries on.
struct Block<'a> {
    call: &'a ConvCall<'a>,
    row: usize,
    first: usize,
    /// How many tokens are computed by blocks.
    head: usize,
    y: Parts<'a>,
    present: Parts<'a>,
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, row, first, head, .. } = self;
        let (channels, back) = (call.channels, call.taps - 1);
        let width = BLOCK.min(channels - first);
        let length = call.lengths.of(row);

        let mut few = [0.0; FEW * BLOCK];
        let mut many = Vec::new();
        let past = match few.get_mut(..back * BLOCK) {
            Some(few) => few,
            None => {
                many.resize(back * BLOCK, 0.0);
                &mut many[..]
            }
        };
        let carried = &call.state[(row * channels + first) * back..][..width * back];
        for (channel, inputs) in carried.chunks_exact(back).enumerate() {
            for (k, input) in inputs.iter().enumerate() {
                past[k * BLOCK + channel] = *input;
            }
        }
        // The window's inputs: the carried ones, then those of the call.
        let input = |index: usize| match index.checked_sub(back) {
            None => &past[index * BLOCK..][..width],
            Some(token) => &call.u[(row * call.time + token) * channels + first..][..width],
        };

        let vectors = width.div_ceil(S::LANES);
        let mut sums = [simd.splat(0.0); BLOCK];
        let sums = &mut sums[..vectors];
        for token in 0..head {
            // SAFETY: each task writes its own channels of its own row's first tokens, one at a time.
            let y = unsafe { self.y.part((row * call.time + token) * channels + first, width) };
            if token >= length {
                y.fill(0.0);
                continue;
            }
            match call.bias {
                None => sums.fill(simd.splat(0.0)),
                Some(bias) => {
                    let bias = bias[first..first + width].chunks(S::LANES);
                    sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum = simd.load_some(bias));
                }
            }
            for k in 0..call.taps {
                let weights = call.weight[k * channels + first..][..width].chunks(S::LANES);
                let operands = input(token + k).chunks(S::LANES).zip(weights);
                for (sum, (x, weight)) in sums.iter_mut().zip(operands) {
                    *sum = simd.mul_add(simd.load_some(x), simd.load_some(weight), *sum);
                }
            }
            for (y, sum) in y.chunks_mut(S::LANES).zip(sums.iter()) {
                simd.store_some(y, simd.silu(*sum));
            }
        }

        // SAFETY: each task writes its own channels of its own row, once.
        let present = unsafe { self.present.part((row * channels + first) * back, width * back) };
        for k in 0..back {
            for (channel, input) in input(length + k).iter().enumerate() {
                present[channel * back + k] = *input;
            }
        }
    }
}

/// Some tokens of one row, over all channels; their windows lie within the call.
struct Span<'a> {
    call: &'a ConvCall<'a>,
    row: usize,
    first: usize,
    y: Parts<'a>,
}

impl Work for Span<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, row, first, .. } = self;
        let (channels, length) = (call.channels, call.lengths.of(row));
        for token in first..call.time.min(first + SPAN) {
            let at = (row * call.time + token) * channels;
            // SAFETY: each task writes its own tokens of its own row, and none of the first ones.
            let y = unsafe { self.y.part(at, channels) };
            if token >= length {
                y.fill(0.0);
                continue;
            }
            let window = &call.u[at - (call.taps - 1) * channels..at + channels];
            for (i, y) in y.chunks_mut(WIDE * S::LANES).enumerate() {
                let channel = i * WIDE * S::LANES;
                // A full group has a length that the compiler knows.
                if y.len() == WIDE * S::LANES {
                    let mut sums = [simd.splat(0.0); WIDE];
                    if let Some(bias) = call.bias {
                        let bias = &bias[channel..][..WIDE * S::LANES];
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = simd.load(&bias[v * S::LANES..]);
                        }
                    }
                    for k in 0..call.taps {
                        let x = &window[k * channels + channel..][..WIDE * S::LANES];
                        let weight = &call.weight[k * channels + channel..][..WIDE * S::LANES];
                        for (v, sum) in sums.iter_mut().enumerate() {
                            let [x, weight] = [x, weight].map(|from| simd.load(&from[v * S::LANES..]));
                            *sum = simd.mul_add(x, weight, *sum);
                        }
                    }
                    for (v, sum) in sums.into_iter().enumerate() {
                        simd.store(&mut y[v * S::LANES..], simd.silu(sum));
                    }
                    continue;
                }
                for (v, y) in y.chunks_mut(S::LANES).enumerate() {
                    let channel = channel + v * S::LANES;
                    let mut sum = match call.bias {
                        Some(bias) => simd.load_some(&bias[channel..][..y.len()]),
                        None => simd.splat(0.0),
                    };
                    for k in 0..call.taps {
                        let at = k * channels + channel;
                        let [x, weight] = [window, call.weight].map(|from| simd.load_some(&from[at..][..y.len()]));
                        sum = simd.mul_add(x, weight, sum);
                    }
                    simd.store_some(y, simd.silu(sum));
                }
            }
        }
    }
}
