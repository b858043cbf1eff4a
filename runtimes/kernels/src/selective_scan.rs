//! The selective scan over a sequence, with dense neighbours.
//!
//! ```text
//! h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ                     Δ = softplus(delta + bias)
//! y_t = (h_t c_t + silu(g_t) ∘ Σ_i h_t^i r_t^i + skip ∘ u_t) ∘ silu(z_t)
//! r^i = P_iᵀ (silu(s) ∘ c)                                        P_i: neighbour i's projection, s: the state gate
//! ```
//!
//! A vector holds 16 (or 8, or 4) channels, and a block's states lie in the first cache, `[vectors, N]`: the sum over
//! N is then one of vectors, and nothing is ever held over time. A neighbour's states are computed again from what
//! its own scan was given, in the same pass.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::{Arity, Lengths, Operands},
    parts::Parts,
    readout::{Layout, Readout, Readouts},
    simd::{Functions, Simd, Work},
};

/// Channels of a block: some cache lines of every token, and states that fit the first cache.
const BLOCK: usize = 64;

#[derive(Debug)]
pub(crate) struct SelectiveScan {
    pub(crate) neighbours: usize,
    pub(crate) level: Level,
}

/// What a layer's hidden states follow from.
#[derive(Clone, Copy)]
struct Recurrence<'a> {
    u: &'a [f32],
    delta: &'a [f32],
    bias: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    state: &'a [f32],
}

/// A call, its shapes checked.
struct Call<'a, 'c> {
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

impl SelectiveScan {
    pub(crate) const OPERANDS: &'static [Slot] = &[
        Slot::required("u"),
        Slot::required("delta"),
        Slot::required("delta_bias"),
        Slot::required("a"),
        Slot::required("b"),
        Slot::required("state"),
        Slot::required("c"),
        Slot::required("skip"),
        Slot::required("z"),
        Slot::lengths(Arity::Required),
        Slot::optional("channel_gate"),
        Slot::optional("state_gate"),
        Slot::repeated("neighbour operand"),
    ];

    fn sizes(operands: &Operands<'_, '_>) -> Result<[usize; 4], Error> {
        let [batch, time, channels] = operands.sizes(0)?;
        let [_, states] = operands.sizes(3)?;
        if states == 0 {
            return Err(Error::new("a", "expected at least one state, got none"));
        }
        Ok([batch, time, channels, states])
    }

    fn check<'a, 'c>(&self, operands: Operands<'a, 'c>) -> Result<Call<'a, 'c>, Error> {
        let [batch, time, channels, states] = Self::sizes(&operands)?;
        let recurrence = |first: usize| {
            Ok::<_, Error>(Recurrence {
                u: operands.floats(first, [batch, time, channels])?,
                delta: operands.floats(first + 1, [batch, time, channels])?,
                bias: operands.floats(first + 2, [channels])?,
                a: operands.floats(first + 3, [channels, states])?,
                b: operands.floats(first + 4, [batch, time, states])?,
                state: operands.floats(first + 5, [batch, channels, states])?,
            })
        };
        let layout = Layout::new(&operands, 12, 6, self.neighbours)?;
        Ok(Call {
            batch,
            time,
            channels,
            states,
            own: recurrence(0)?,
            skip: operands.floats(7, [channels])?,
            z: operands.floats(8, [batch, time, channels])?,
            lengths: operands.lengths(9, batch, time)?,
            channel_gate: operands.maybe(10, [batch, time, channels])?,
            neighbours: (0..self.neighbours).map(|i| recurrence(layout.of(i))).collect::<Result<_, _>>()?,
            readout: Readout::check(operands, [batch, time, states], [6, 11], layout, self.neighbours)?,
        })
    }
}

impl Kernel for SelectiveScan {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let call = self.check(Operands { slots: Self::OPERANDS, given: operands })?;
        let [y, present] = buffers(results, [call.z.len(), call.own.state.len()])?;
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
    call: &'a Call<'a, 'a>,
    readouts: Readouts<'a>,
    row: usize,
    first: usize,
    y: Parts<'a>,
    present: Parts<'a>,
}

/// The states of one recurrence while it runs, and its decay rates: `[vectors, N]` each.
struct Running<'a, F> {
    of: Recurrence<'a>,
    h: Vec<F>,
    /// In powers of two.
    a: Vec<F>,
}

impl<'a> Block<'a> {
    /// Numbers `[width, N]` as vectors `[vectors, N]`.
    #[inline(always)]
    fn turned<S: Simd>(&self, simd: S, numbers: &[f32], factor: f32) -> Vec<S::F> {
        let states = self.call.states;
        let mut vectors = Vec::with_capacity(numbers.len().div_ceil(S::LANES));
        for channels in numbers.chunks(S::LANES * states) {
            for n in 0..states {
                let mut column = [0.0; BLOCK];
                for (lane, number) in column.iter_mut().zip(channels[n..].iter().step_by(states)) {
                    *lane = *number * factor;
                }
                vectors.push(simd.load(&column));
            }
        }
        vectors
    }

    #[inline(always)]
    fn start<S: Simd>(&self, simd: S, of: Recurrence<'a>, width: usize) -> Running<'a, S::F> {
        let Call { channels, states, .. } = *self.call;
        let h = self.turned(simd, &of.state[(self.row * channels + self.first) * states..][..width * states], 1.0);
        let a = self.turned(simd, &of.a[self.first * states..][..width * states], std::f32::consts::LOG2_E);
        Running { of, h, a }
    }
}

impl<F: Copy> Running<'_, F> {
    /// One token of one vector of channels, read out with `readout`. `at` is where its numbers lie in `[B, T, D]`.
    #[inline(always)]
    fn turn<S: Simd<F = F>>(&mut self, simd: S, place: &Place, b: &[f32], readout: &[f32]) -> (F, F) {
        let states = readout.len();
        let Place { vector, at, end, channel, channel_end } = *place;
        let u = simd.load_some(&self.of.u[at..end]);
        let bias = simd.load_some(&self.of.bias[channel..channel_end]);
        let delta = simd.softplus(simd.add(simd.load_some(&self.of.delta[at..end]), bias));
        let driven = simd.mul(delta, u);
        let h = &mut self.h[vector * states..][..states];
        let a = &self.a[vector * states..][..states];
        let mut y = simd.splat(0.0);
        for (((h, a), b), readout) in h.iter_mut().zip(a).zip(b).zip(readout) {
            let input = simd.mul(driven, simd.splat(*b));
            *h = simd.mul_add(simd.exp2(simd.mul(delta, *a)), *h, input);
            y = simd.mul_add(*h, simd.splat(*readout), y);
        }
        (y, u)
    }
}

/// Where a vector of channels lies: which of the block it is, and its numbers in `[B, T, D]` and `[D]`.
#[derive(Clone, Copy)]
struct Place {
    vector: usize,
    at: usize,
    end: usize,
    channel: usize,
    channel_end: usize,
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, row, first, .. } = self;
        let (channels, states) = (call.channels, call.states);
        let width = BLOCK.min(channels - first);
        let length = call.lengths.of(row);
        let mut own = self.start(simd, call.own, width);
        let mut neighbours = Vec::with_capacity(call.neighbours.len());
        for neighbour in &call.neighbours {
            neighbours.push(self.start(simd, *neighbour, width));
        }

        for token in 0..call.time {
            let position = row * call.time + token;
            let start = position * channels + first;
            // SAFETY: each task writes its own channels of its own row, a token at a time.
            let y = unsafe { self.y.part(start, width) };
            if token >= length {
                y.fill(0.0);
                continue;
            }
            let of_token = |numbers: &'_ [f32]| -> std::ops::Range<usize> {
                let at = position * states;
                at..(at + states).min(numbers.len())
            };
            for (vector, y) in y.chunks_mut(S::LANES).enumerate() {
                let shift = vector * S::LANES;
                let place = Place {
                    vector,
                    at: start + shift,
                    end: start + width,
                    channel: first + shift,
                    channel_end: first + width,
                };
                let c = call.readout.c;
                let (mut sum, u) = own.turn(simd, &place, &own.of.b[of_token(own.of.b)], &c[of_token(c)]);
                if !neighbours.is_empty() {
                    let mut dense = simd.splat(0.0);
                    for (i, neighbour) in neighbours.iter_mut().enumerate() {
                        let b = &neighbour.of.b[of_token(neighbour.of.b)];
                        let (read, _) = neighbour.turn(simd, &place, b, self.readouts.of(i, position));
                        dense = simd.add(dense, read);
                    }
                    sum = match call.channel_gate {
                        None => simd.add(sum, dense),
                        Some(gate) => simd.mul_add(simd.silu(simd.load_some(&gate[place.at..place.end])), dense, sum),
                    };
                }
                let sum = simd.mul_add(simd.load_some(&call.skip[place.channel..place.channel_end]), u, sum);
                simd.store_some(y, simd.mul(sum, simd.silu(simd.load_some(&call.z[place.at..place.end]))));
            }
        }

        // SAFETY: each task writes its own channels of its own row, once.
        let present = unsafe { self.present.part((row * channels + first) * states, width * states) };
        for (group, vectors) in present.chunks_mut(S::LANES * states).zip(own.h.chunks(states)) {
            for (n, vector) in vectors.iter().enumerate() {
                let mut column = [0.0; BLOCK];
                simd.store(&mut column, *vector);
                for (number, lane) in group[n..].iter_mut().step_by(states).zip(&column) {
                    *number = *lane;
                }
            }
        }
    }
}
