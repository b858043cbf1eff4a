//! `y_t = silu(bias + Σ_k w_k ∘ u_{t-K+1+k})`: a depthwise convolution with carried inputs.
//!
//! Channels are shared out in blocks; a block's window of past inputs is turned to `[K-1, block]` first, so that the
//! tokens before and in the call are read alike.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::{Arity, Lengths, Operands},
    parts::Parts,
    simd::{Functions, Simd, Work},
};

/// Channels of a block: some cache lines of every token.
const BLOCK: usize = 64;
/// Carried inputs that are held without allocating.
const FEW: usize = 7;
/// Work, in channels times tokens, that is worth waking other threads for.
const WORTH_SHARING: usize = 1 << 13;

#[derive(Debug)]
pub(crate) struct CausalConv {
    pub(crate) level: Level,
}

/// A call, its shapes checked.
struct Call<'a> {
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

impl CausalConv {
    pub(crate) const OPERANDS: &'static [Slot] = &[
        Slot::required("u"),
        Slot::required("weight"),
        Slot::required("state"),
        Slot::optional("bias"),
        Slot::lengths(Arity::Optional),
    ];

    fn check<'a>(operands: &[Operand<'a>]) -> Result<Call<'a>, Error> {
        let operands = Operands { slots: Self::OPERANDS, given: operands };
        let [batch, time, channels] = operands.sizes(0)?;
        let [taps, _] = operands.sizes(1)?;
        if taps < 2 {
            return Err(Error::new("weight", format!("expected at least 2 taps, got {taps}")));
        }
        Ok(Call {
            batch,
            time,
            channels,
            taps,
            u: operands.floats(0, [batch, time, channels])?,
            weight: operands.floats(1, [taps, channels])?,
            state: operands.floats(2, [batch, channels, taps - 1])?,
            bias: operands.maybe(3, [channels])?,
            lengths: operands.lengths(4, batch, time)?,
        })
    }
}

impl Kernel for CausalConv {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let call = Self::check(operands)?;
        let [y, present] = buffers(results, [call.u.len(), call.state.len()])?;
        let (y, present) = (Parts::new(y), Parts::new(present));
        let blocks = call.channels.div_ceil(BLOCK);
        let block = |task: usize| {
            self.level.run(Block { call: &call, row: task / blocks, first: task % blocks * BLOCK, y, present });
        };
        let tasks = call.batch * blocks;
        if call.batch * call.time * call.channels < WORTH_SHARING {
            (0..tasks).for_each(block);
            return Ok(());
        }
        pool.run(tasks, &block)
    }
}

/// A block of channels of one row, over all tokens.
struct Block<'a> {
    call: &'a Call<'a>,
    row: usize,
    first: usize,
    y: Parts<'a>,
    present: Parts<'a>,
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, row, first, .. } = self;
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
        // The window's inputs: those carried, then the call's.
        let input = |index: usize| match index.checked_sub(back) {
            None => &past[index * BLOCK..][..width],
            Some(token) => &call.u[(row * call.time + token) * channels + first..][..width],
        };

        let vectors = width.div_ceil(S::LANES);
        let mut sums = [simd.splat(0.0); BLOCK];
        let sums = &mut sums[..vectors];
        for token in 0..call.time {
            // SAFETY: each task writes its own channels of its own row, a token at a time.
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
