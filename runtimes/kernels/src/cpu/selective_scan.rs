//! The selective scan over a sequence, with dense neighbours.
//!
//! ```text
//! h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ                     Δ = softplus(delta + bias)
//! y_t = (h_t c_t + silu(g_t) ∘ Σ_i h_t^i r_t^i + skip ∘ u_t) ∘ silu(z_t)
//! r^i = P_iᵀ (silu(s) ∘ c)                                        P_i: neighbour i's projection, s: the state gate
//! ```
//!
//! A vector holds one number of each of 16 (or 8, or 4) channels. A block's states, `[vectors, N]`, stay in the
//! first-level cache, so that the sum over N is one of vectors and no states are kept over time. A neighbour's states
//! are recomputed in the same pass, from the operands of its own scan.

use super::{
    CpuKernel, Level,
    parts::Parts,
    readout::{Positions, Readout, Readouts},
    simd::{Functions, Simd, Work},
};
use crate::{
    BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, bound::Lengths, operand::f32_results,
};
use densessm_proto::{
    DType,
    operators::{self, GroupSchema, Schema},
    position,
};
use std::ops::Range;

const SCHEMA: &Schema = &operators::SELECTIVE_SCAN;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];
const READOUT: &Positions = &Positions::new(SCHEMA);

pub(super) const KERNEL: CpuKernel =
    KernelRegistration::new(SCHEMA, DType::F32, |_, level| Ok(Box::new(SelectiveScan { level: *level })));

/// Channels of a block: some cache lines of every token, and states that fit the first-level cache.
const BLOCK: usize = 64;
/// Elements of a cache line.
const LINE: usize = 16;
/// Tokens whose Δ is computed together.
const CHUNK: usize = 16;

#[derive(Debug)]
struct SelectiveScan {
    level: Level,
}

/// The operands that a layer's hidden states follow from.
#[derive(Clone, Copy)]
struct Recurrence<'a> {
    u: &'a [f32],
    delta: &'a [f32],
    bias: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    state: &'a [f32],
}

/// The operands and sizes of a call.
struct ScanCall<'a, 'c> {
    batch: usize,
    time: usize,
    channels: usize,
    states: usize,
    own: Recurrence<'a>,
    skip: &'a [f32],
    z: &'a [f32],
    lengths: Lengths<'a>,
    channel_gate: Option<&'a [f32]>,
    neighbours: Vec<Recurrence<'a>>,
    readout: Readout<'a, 'c>,
}

impl<'a, 'c> ScanCall<'a, 'c> {
    fn new(call: &'c BoundCall<'c, Operand<'a>>) -> Result<Self, Error> {
        let neighbour = |i: usize| Recurrence {
            u: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "u")),
            delta: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "delta")),
            bias: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "delta_bias")),
            a: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "a")),
            b: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "b")),
            state: call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "state")),
        };
        let time = call.size(position!(SCHEMA, dimension "time"));
        Ok(Self {
            batch: call.size(position!(SCHEMA, dimension "batch")),
            time,
            channels: call.size(position!(SCHEMA, dimension "channels")),
            states: call.size(position!(SCHEMA, dimension "states")),
            own: Recurrence {
                u: call.f32(position!(SCHEMA, operand "own_u"))?,
                delta: call.f32(position!(SCHEMA, operand "own_delta"))?,
                bias: call.f32(position!(SCHEMA, operand "own_delta_bias"))?,
                a: call.f32(position!(SCHEMA, operand "own_a"))?,
                b: call.f32(position!(SCHEMA, operand "own_b"))?,
                state: call.f32(position!(SCHEMA, operand "own_state"))?,
            },
            skip: call.f32(position!(SCHEMA, operand "skip"))?,
            z: call.f32(position!(SCHEMA, operand "z"))?,
            lengths: call.lengths(position!(SCHEMA, operand "lengths"), time)?,
            channel_gate: call.optional_f32(position!(SCHEMA, operand "channel_gate")),
            neighbours: (0..call.repetitions(NEIGHBOURS)).map(neighbour).collect(),
            readout: Readout::new(call, READOUT)?,
        })
    }
}

impl Kernel for SelectiveScan {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let call = ScanCall::new(call)?;
        let [y, present] = f32_results(results)?;
        let (y, present) = (Parts::new(y), Parts::new(present));
        let blocks = call.channels.div_ceil(BLOCK);
        call.readout.computed(self.level, |readouts| {
            pool.run(call.batch * blocks, &|task| {
                let (row, first) = (task / blocks, task % blocks * BLOCK);
                self.level.run(Block { call: &call, readouts, row, first, y, present });
            })
        })
    }
}

/// A block of channels of one row, over all tokens.
struct Block<'a> {
    call: &'a ScanCall<'a, 'a>,
    readouts: Readouts<'a>,
    row: usize,
    first: usize,
    y: Parts<'a>,
    present: Parts<'a>,
}

/// A recurrence of a block in progress: states and decay rates, `[vectors, N]` each.
struct Running<'a, F> {
    of: Recurrence<'a>,
    h: Vec<[F; 2]>,
}

/// The values of a chunk of tokens, `[tokens, vectors]` each.
struct Chunk<F> {
    /// Δ.
    delta: Vec<F>,
    /// Δ u.
    input: Vec<F>,
    /// The sum of the states' read-outs.
    read: Vec<F>,
}

/// The position of a block's elements in the tensors of a call.
#[derive(Clone, Copy)]
struct BlockPosition {
    row: usize,
    first: usize,
    width: usize,
    time: usize,
    channels: usize,
    states: usize,
}

impl BlockPosition {
    /// The index of a token in `[B, T]`.
    #[inline(always)]
    fn position(&self, token: usize) -> usize {
        self.row * self.time + token
    }

    /// The block's elements of a token in `[B, T, D]`.
    #[inline(always)]
    fn channels_of<'a>(&self, numbers: &'a [f32], token: usize) -> &'a [f32] {
        &numbers[self.position(token) * self.channels + self.first..][..self.width]
    }

    /// The elements of a token in `[B, T, N]`.
    #[inline(always)]
    fn states_of<'a>(&self, numbers: &'a [f32], token: usize) -> &'a [f32] {
        &numbers[self.position(token) * self.states..][..self.states]
    }

    /// The block's elements in `[D]`.
    #[inline(always)]
    fn channels_in<'a>(&self, numbers: &'a [f32]) -> &'a [f32] {
        &numbers[self.first..][..self.width]
    }

    /// Transposes `[width, N]` to vectors `[vectors, N]`, multiplied with a factor.
    #[inline(always)]
    fn transposed<S: Simd>(&self, simd: S, numbers: &[f32], factor: f32) -> Vec<S::F> {
        let mut vectors = Vec::with_capacity(self.width.div_ceil(S::LANES) * self.states);
        for channels in numbers.chunks(S::LANES * self.states) {
            for n in 0..self.states {
                let mut column = [0.0; BLOCK];
                for (lane, number) in column.iter_mut().zip(channels[n..].iter().step_by(self.states)) {
                    *lane = *number * factor;
                }
                vectors.push(simd.load(&column));
            }
        }
        vectors
    }

    #[inline(always)]
    fn start<'a, S: Simd>(&self, simd: S, of: Recurrence<'a>) -> Running<'a, S::F> {
        let (first, size) = (self.first * self.states, self.width * self.states);
        let h = self.transposed(simd, &of.state[self.row * self.channels * self.states + first..][..size], 1.0);
        let a = self.transposed(simd, &of.a[first..][..size], std::f32::consts::LOG2_E);
        Running { of, h: h.into_iter().zip(a).map(|(h, a)| [h, a]).collect() }
    }
}

impl<F: Copy> Running<'_, F> {
    /// Runs over some tokens and adds the read-out of the states with each token's vector to `read`.
    ///
    /// Δ is computed for all of these tokens first, so that the long chains of operations of several tokens overlap.
    #[inline(always)]
    fn run<'r, S: Simd<F = F>>(
        &mut self,
        simd: S,
        place: &BlockPosition,
        tokens: Range<usize>,
        chunk: &mut Chunk<F>,
        readout: impl Fn(usize) -> &'r [f32],
    ) {
        let bias = place.channels_in(self.of.bias);
        let vectors = place.width.div_ceil(S::LANES);
        for ((token, delta), input) in
            tokens.clone().zip(chunk.delta.chunks_exact_mut(vectors)).zip(chunk.input.chunks_exact_mut(vectors))
        {
            let operands = place.channels_of(self.of.delta, token).chunks(S::LANES);
            let operands =
                operands.zip(bias.chunks(S::LANES)).zip(place.channels_of(self.of.u, token).chunks(S::LANES));
            for (((x, bias), u), (delta, input)) in operands.zip(delta.iter_mut().zip(input)) {
                *delta = simd.softplus(simd.add(simd.load_some(x), simd.load_some(bias)));
                *input = simd.mul(*delta, simd.load_some(u));
            }
        }
        let steps = chunk.delta.chunks_exact(vectors).zip(chunk.input.chunks_exact(vectors));
        for (token, ((delta, input), read)) in tokens.zip(steps.zip(chunk.read.chunks_exact_mut(vectors))) {
            let (b, readout) = (place.states_of(self.of.b, token), readout(token));
            // Tokens are too far apart in memory for the hardware prefetcher.
            if token + CHUNK < place.time {
                for numbers in [self.of.delta, self.of.u] {
                    let ahead = place.channels_of(numbers, token + CHUNK);
                    ahead.chunks(LINE).for_each(|line| simd.prefetch(line));
                }
            }
            let running = self.h.chunks_exact_mut(place.states);
            for ((h, read), (delta, input)) in running.zip(read).zip(delta.iter().zip(input)) {
                // Copied into registers: through a reference they would be loaded and stored again for every state.
                let (delta, input, mut sum) = (*delta, *input, *read);
                for (([h, a], b), readout) in h.iter_mut().zip(b).zip(readout) {
                    let input = simd.mul(input, simd.splat(*b));
                    *h = simd.mul_add(simd.exp2(simd.mul(delta, *a)), *h, input);
                    sum = simd.mul_add(*h, simd.splat(*readout), sum);
                }
                *read = sum;
            }
        }
    }
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, row, first, .. } = self;
        let ScanCall { time, channels, states, .. } = *call;
        let place = BlockPosition { row, first, width: BLOCK.min(channels - first), time, channels, states };
        let length = call.lengths.of(row);
        let mut own = place.start(simd, call.own);
        let mut neighbours = Vec::with_capacity(call.neighbours.len());
        for neighbour in &call.neighbours {
            neighbours.push(place.start(simd, *neighbour));
        }
        let vectors = place.width.div_ceil(S::LANES);
        let zeros = || vec![simd.splat(0.0); CHUNK * vectors];
        let mut chunk = Chunk { delta: zeros(), input: zeros(), read: zeros() };
        let mut dense = zeros();

        for start in (0..length).step_by(CHUNK) {
            let tokens = start..length.min(start + CHUNK);
            chunk.read.fill(simd.splat(0.0));
            if !neighbours.is_empty() {
                for (i, neighbour) in neighbours.iter_mut().enumerate() {
                    let readout = |token: usize| self.readouts.of(i, place.position(token));
                    neighbour.run(simd, &place, tokens.clone(), &mut chunk, readout);
                }
                std::mem::swap(&mut dense, &mut chunk.read);
                chunk.read.fill(simd.splat(0.0));
                for (token, dense) in tokens.clone().zip(dense.chunks_exact_mut(vectors)) {
                    let Some(gate) = call.channel_gate else { break };
                    for (dense, gate) in dense.iter_mut().zip(place.channels_of(gate, token).chunks(S::LANES)) {
                        *dense = simd.mul(simd.silu(simd.load_some(gate)), *dense);
                    }
                }
            }
            own.run(simd, &place, tokens.clone(), &mut chunk, |token| place.states_of(call.readout.c, token));

            let sums = chunk.read.chunks_exact(vectors).zip(dense.chunks_exact(vectors));
            for (token, (read, dense)) in tokens.zip(sums) {
                // SAFETY: each task writes its own channels of its own row, a token at a time.
                let y = unsafe { self.y.part(place.position(token) * channels + first, place.width) };
                let skips = place.channels_in(call.skip).chunks(S::LANES);
                let operands = skips.zip(place.channels_of(call.own.u, token).chunks(S::LANES));
                let operands = operands.zip(place.channels_of(call.z, token).chunks(S::LANES));
                for ((y, ((skip, u), z)), (read, dense)) in
                    y.chunks_mut(S::LANES).zip(operands).zip(read.iter().zip(dense))
                {
                    let sum = simd.mul_add(simd.load_some(skip), simd.load_some(u), simd.add(*read, *dense));
                    simd.store_some(y, simd.mul(sum, simd.silu(simd.load_some(z))));
                }
            }
        }
        for token in length..time {
            // SAFETY: each task writes its own channels of its own row, a token at a time.
            unsafe { self.y.part(place.position(token) * channels + first, place.width) }.fill(0.0);
        }

        // SAFETY: each task writes its own channels of its own row, once.
        let present = unsafe { self.present.part((row * channels + first) * states, place.width * states) };
        for (group, vectors) in present.chunks_mut(S::LANES * states).zip(own.h.chunks(states)) {
            for (n, vector) in vectors.iter().enumerate() {
                let mut column = [0.0; BLOCK];
                simd.store(&mut column, vector[0]);
                for (number, lane) in group[n..].iter_mut().step_by(states).zip(&column) {
                    *number = *lane;
                }
            }
        }
    }
}
