//! One token of retention: `S ← γ S + kᵀ v`, `o = RMSNorm(q S / sqrt(s)) ∘ g`.
//!
//! A state is read once and written once, row by row, as one stream each, while `v` and the sums in `o` stay in the
//! first-level cache. A task computes a whole head if there are enough of them for all threads, else some of its columns.

use super::{
    CpuKernel, Level,
    head::{NormAndGate, Positions, RetentionCall},
    parts::Parts,
    simd::{Functions, Simd, Work},
};
use crate::{BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, operand::f32_results};
use densessm_proto::{
    DType, DenseRetNet,
    operators::{self, Schema},
};

const SCHEMA: &Schema = &operators::RETENTION_STEP;
const POSITIONS: &Positions = &Positions::new(SCHEMA);

pub(super) const KERNEL: CpuKernel = KernelRegistration::new(SCHEMA, DType::F32, |attributes, level| {
    Ok(Box::new(RetentionStep { epsilon: attributes.float(POSITIONS.epsilon)?, level: *level }))
});

/// The granularity of the columns of a task.
const MIN_COLUMNS: usize = 64;
/// Elements of a layer's state from which on the states of all layers are assumed to exceed the cache. They are then
/// written with streaming stores, for they are not read before the next token.
const LARGE: usize = 1 << 18;

#[derive(Debug)]
struct RetentionStep {
    epsilon: f32,
    level: Level,
}

impl Kernel for RetentionStep {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let call = RetentionCall::new(call, POSITIONS, self.epsilon)?;
        let [o, present] = f32_results(results)?;
        let columns = call.columns_per_task(pool.threads(), MIN_COLUMNS);
        let blocks = call.dv.div_ceil(columns);
        {
            let (o, present) = (Parts::new(o), Parts::new(present));
            pool.run(call.batch * call.heads * blocks, &|task| {
                let (head, first) = (task / blocks, task % blocks * columns);
                let width = columns.min(call.dv - first);
                let stream = call.state.len() >= LARGE;
                self.level.run(Block { call: &call, head, first, width, stream, o, present });
            })?;
        }
        for (head, o) in o.chunks_exact_mut(call.dv).enumerate() {
            self.level.run(NormAndGate { output: &call.output, head, o });
        }
        Ok(())
    }
}

/// Some columns of one head's state.
struct Block<'a> {
    call: &'a RetentionCall<'a>,
    /// Index in `[B, H]`.
    head: usize,
    first: usize,
    width: usize,
    stream: bool,
    o: Parts<'a>,
    present: Parts<'a>,
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, head, first, width, stream, .. } = self;
        let RetentionCall { heads, dk, dv, .. } = *call;
        let row = head / heads;
        let decay = DenseRetNet::decay(head % heads) as f32;
        let (cos, sin) = (&call.cos[row * dk / 2..][..dk / 2], &call.sin[row * dk / 2..][..dk / 2]);
        let (q, k) = (&call.q[head * dk..][..dk], &call.k[head * dk..][..dk]);
        let v = &call.v[head * dv + first..][..width];
        // SAFETY: each task writes its own columns of its own head.
        let o = unsafe { self.o.part(head * dv + first, width) };
        o.fill(0.0);

        // Component i of a vector, rotated by the position's angles.
        let rotated = |x: &[f32], i: usize| {
            let (a, b) = (x[i & !1], x[i | 1]);
            let (cos, sin) = (cos[i / 2], sin[i / 2]);
            if i.is_multiple_of(2) { a * cos - b * sin } else { b * cos + a * sin }
        };
        let from = |i: usize| (head * dk + i) * dv + first;
        for i in 0..dk {
            let past = &call.state[from(i)..][..width];
            // SAFETY: each task writes its own columns of its own head, a row at a time.
            let present = unsafe { self.present.part(from(i), width) };
            let weights = [decay, rotated(q, i), rotated(k, i)];
            if stream {
                update::<S, true>(simd, weights, past, present, v, o);
            } else {
                update::<S, false>(simd, weights, past, present, v, o);
            }
        }
        if stream {
            simd.fence();
        }
    }
}

/// `S_i ← γ S_i + k_i v`, `o ← o + q_i S_i` for one row i; weights are `[γ, q_i, k_i]`.
#[inline(always)]
fn update<S: Simd, const STREAM: bool>(
    simd: S,
    weights: [f32; 3],
    past: &[f32],
    present: &mut [f32],
    v: &[f32],
    o: &mut [f32],
) {
    let [decay, q, k] = weights.map(|weight| simd.splat(weight));
    let operands = past.chunks(S::LANES).zip(v.chunks(S::LANES));
    let results = present.chunks_mut(S::LANES).zip(o.chunks_mut(S::LANES));
    for ((past, v), (present, o)) in operands.zip(results) {
        let s = simd.mul_add(k, simd.load_some(v), simd.mul(decay, simd.load_some(past)));
        if STREAM && present.len() == S::LANES {
            simd.stream(present, s);
        } else {
            simd.store_some(present, s);
        }
        let sum = simd.mul_add(q, s, simd.load_some(o));
        simd.store_some(o, sum);
    }
}
