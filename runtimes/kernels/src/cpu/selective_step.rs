//! One token of the selective scan, which reads the neighbours' states as operands.
//!
//! A vector holds states of one channel, in the order of memory, so that a state is read once and written once. Δ and the
//! gates are computed for a block of channels at a time.

use super::{
    CpuKernel, Level,
    parts::Parts,
    readout::{Positions, Readout, Readouts},
    simd::{Functions, Simd, Work},
};
use crate::{BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, operand::f32_results};
use densessm_proto::{
    DType,
    operators::{self, GroupSchema, Schema},
    position,
};

const SCHEMA: &Schema = &operators::SELECTIVE_STEP;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];
const READOUT: &Positions = &Positions::new(SCHEMA);

pub(super) const KERNEL: CpuKernel =
    KernelRegistration::new(SCHEMA, DType::F32, |_, level| Ok(Box::new(SelectiveStep { level: *level })));

/// Channels of a block.
const BLOCK: usize = 64;
/// The smallest number of states that is worth waking other threads for.
const WORTH_SHARING: usize = 1 << 13;

#[derive(Debug)]
struct SelectiveStep {
    level: Level,
}

/// The operands and sizes of a call.
struct StepCall<'a, 'c> {
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
    neighbours: usize,
    readout: Readout<'a, 'c>,
    call: &'c BoundCall<'c, Operand<'a>>,
}

impl<'a, 'c> StepCall<'a, 'c> {
    fn new(call: &'c BoundCall<'c, Operand<'a>>) -> Result<Self, Error> {
        Ok(Self {
            batch: call.size(position!(SCHEMA, dimension "batch")),
            channels: call.size(position!(SCHEMA, dimension "channels")),
            states: call.size(position!(SCHEMA, dimension "states")),
            u: call.f32(position!(SCHEMA, operand "u"))?,
            delta: call.f32(position!(SCHEMA, operand "delta"))?,
            bias: call.f32(position!(SCHEMA, operand "delta_bias"))?,
            a: call.f32(position!(SCHEMA, operand "a"))?,
            b: call.f32(position!(SCHEMA, operand "b"))?,
            state: call.f32(position!(SCHEMA, operand "state"))?,
            skip: call.f32(position!(SCHEMA, operand "skip"))?,
            z: call.f32(position!(SCHEMA, operand "z"))?,
            channel_gate: call.optional_f32(position!(SCHEMA, operand "channel_gate")),
            neighbours: call.repetitions(NEIGHBOURS),
            readout: Readout::new(call, READOUT)?,
            call,
        })
    }

    /// The states of neighbour i after this token, `[B, D, N]`.
    #[inline(always)]
    fn neighbour(&self, i: usize) -> &'a [f32] {
        self.call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "state"))
    }
}

impl Kernel for SelectiveStep {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let call = StepCall::new(call)?;
        let [y, present] = f32_results(results)?;
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
    call: &'a StepCall<'a, 'a>,
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

        // Δ log2(e), for the decay as a power of two, and Δ u.
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
                let h = call.neighbour(i);
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
