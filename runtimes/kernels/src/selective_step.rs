//! One token of the selective scan: the neighbours' states have just been computed and are read as they are.
//!
//! A vector holds states of one channel, as they lie in memory: each number of a state is read once and written once.
//! What a channel needs besides (Δ, its gates) is computed for a block of channels at a time.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::Operands,
    parts::Parts,
    readout::{Layout, Readout, Readouts},
    simd::{Functions, Simd, Work},
};

/// Channels of a block.
const BLOCK: usize = 64;
/// States that are worth waking other threads for.
const WORTH_SHARING: usize = 1 << 13;

#[derive(Debug)]
pub(crate) struct SelectiveStep {
    pub(crate) neighbours: usize,
    pub(crate) level: Level,
}

/// A call, its shapes checked.
struct Call<'a, 'c> {
    batch: usize,
    channels: usize,
    states: usize,
    u: &'a [f32],
    delta: &'a [f32],
    bias: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    state: &'a [f32],
    skip: &'a [f32],
    z: &'a [f32],
    channel_gate: Option<&'a [f32]>,
    operands: Operands<'a, 'c>,
    layout: Layout,
    neighbours: usize,
    readout: Readout<'a, 'c>,
}

impl SelectiveStep {
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
        Slot::optional("channel_gate"),
        Slot::optional("state_gate"),
        Slot::repeated("neighbour operand"),
    ];

    fn sizes(operands: &Operands<'_, '_>) -> Result<[usize; 3], Error> {
        let [batch, time, channels] = operands.sizes(0)?;
        let [_, states] = operands.sizes(3)?;
        if states == 0 {
            return Err(Error::new("a", "expected at least one state, got none"));
        }
        if time != 1 {
            return Err(Error::new("u", format!("expected one token, got {time}")));
        }
        Ok([batch, channels, states])
    }

    fn check<'a, 'c>(&self, operands: Operands<'a, 'c>) -> Result<Call<'a, 'c>, Error> {
        let [batch, channels, states] = Self::sizes(&operands)?;
        let layout = Layout::new(&operands, 11, 1, self.neighbours)?;
        let of_token = |index, size| operands.floats(index, [batch, 1, size]);
        let call = Call {
            batch,
            channels,
            states,
            u: of_token(0, channels)?,
            delta: of_token(1, channels)?,
            bias: operands.floats(2, [channels])?,
            a: operands.floats(3, [channels, states])?,
            b: of_token(4, states)?,
            state: operands.floats(5, [batch, channels, states])?,
            skip: operands.floats(7, [channels])?,
            z: of_token(8, channels)?,
            channel_gate: operands.maybe(9, [batch, 1, channels])?,
            operands,
            layout,
            neighbours: self.neighbours,
            readout: Readout::check(operands, [batch, 1, states], [6, 10], layout, self.neighbours)?,
        };
        (0..self.neighbours).try_for_each(|i| call.neighbour(i).map(|_| ()))?;
        Ok(call)
    }
}

impl<'a> Call<'a, '_> {
    /// The states of neighbour i after this token, `[B, D, N]`.
    fn neighbour(&self, i: usize) -> Result<&'a [f32], Error> {
        self.operands.floats(self.layout.of(i), [self.batch, self.channels, self.states])
    }
}

impl Kernel for SelectiveStep {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let call = self.check(Operands { slots: Self::OPERANDS, given: operands })?;
        let [y, present] = buffers(results, [call.z.len(), call.state.len()])?;
        let (y, present) = (Parts::new(y), Parts::new(present));
        let blocks = call.channels.div_ceil(BLOCK);
        call.readout.computed(self.level, |readouts| {
            let block = |task: usize| {
                let (row, first) = (task / blocks, task % blocks * BLOCK);
                self.level.run(Block { call: &call, readouts, row, first, y, present });
            };
            let tasks = call.batch * blocks;
            if call.state.len() < WORTH_SHARING {
                (0..tasks).for_each(block);
                return Ok(());
            }
            pool.run(tasks, &block)
        })
    }
}

/// A block of channels of one row.
struct Block<'a> {
    call: &'a Call<'a, 'a>,
    readouts: Readouts<'a>,
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
        let states = call.states;
        let width = BLOCK.min(call.channels - first);
        let at = row * call.channels + first;
        let of_row = |numbers: &'_ [f32]| -> [usize; 2] { [row * states, (row * states + states).min(numbers.len())] };
        let vectors = || (0..width).step_by(S::LANES);

        // Δ in powers of two for the decay, and Δ u.
        let (mut delta, mut driven) = ([0.0; BLOCK], [0.0; BLOCK]);
        for i in vectors() {
            let bias = simd.load_some(&call.bias[first + i..first + width]);
            let x = simd.softplus(simd.add(simd.load_some(&call.delta[at + i..at + width]), bias));
            simd.store(&mut delta[i..], simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
            simd.store(&mut driven[i..], simd.mul(x, simd.load_some(&call.u[at + i..at + width])));
        }

        let mut y = [0.0; BLOCK];
        let [from, to] = of_row(call.b);
        let (b, c) = (&call.b[from..to], &call.readout.c[from..to]);
        let own = at * states..(at + width) * states;
        // SAFETY: each task writes its own channels of its own row, once.
        let present = unsafe { self.present.part(own.start, own.len()) };
        let a = call.a[first * states..].chunks_exact(states);
        let h = call.state[own.clone()].chunks_exact(states).zip(present.chunks_exact_mut(states));
        for ((((h, present), a), y), (delta, driven)) in h.zip(a).zip(&mut y).zip(delta.iter().zip(&driven)) {
            let (delta, driven) = (simd.splat(*delta), simd.splat(*driven));
            let mut sum = simd.splat(0.0);
            for n in (0..states).step_by(S::LANES) {
                let decay = simd.exp2(simd.mul(delta, simd.load_some(&a[n..])));
                let input = simd.mul(driven, simd.load_some(&b[n..]));
                let next = simd.mul_add(decay, simd.load_some(&h[n..]), input);
                simd.store_some(&mut present[n..], next);
                sum = simd.mul_add(next, simd.load_some(&c[n..]), sum);
            }
            *y = simd.sum(sum);
        }

        if call.neighbours > 0 {
            let mut dense = [0.0; BLOCK];
            for i in 0..call.neighbours {
                let Ok(h) = call.neighbour(i) else { continue };
                let readout = self.readouts.of(i, row);
                for (h, dense) in h[own.clone()].chunks_exact(states).zip(&mut dense) {
                    let mut sum = simd.splat(0.0);
                    for n in (0..states).step_by(S::LANES) {
                        sum = simd.mul_add(simd.load_some(&h[n..]), simd.load_some(&readout[n..]), sum);
                    }
                    *dense += simd.sum(sum);
                }
            }
            for i in vectors() {
                let mut dense = simd.load(&dense[i..]);
                if let Some(gate) = call.channel_gate {
                    dense = simd.mul(simd.silu(simd.load_some(&gate[at + i..at + width])), dense);
                }
                let sum = simd.add(simd.load(&y[i..]), dense);
                simd.store(&mut y[i..], sum);
            }
        }

        // SAFETY: each task writes its own channels of its own row, once.
        let out = unsafe { self.y.part(at, width) };
        for i in vectors() {
            let skip = simd.load_some(&call.skip[first + i..first + width]);
            let sum = simd.mul_add(skip, simd.load_some(&call.u[at + i..at + width]), simd.load(&y[i..]));
            let gated = simd.mul(sum, simd.silu(simd.load_some(&call.z[at + i..at + width])));
            simd.store_some(&mut out[i..], gated);
        }
    }
}
