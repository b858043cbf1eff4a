//! Retention over a sequence, in chunks of tokens.
//!
//! Chunks of C tokens are computed in the parallel form and joined in the recurrent one:
//!
//! ```text
//! o_i = Σ_{j≤i} γ^(i-j) (q_i·k_j) v_j + γ^(i+1) q_i S        S ← γ^C S + Σ_j γ^(C-1-j) k_jᵀ v_j
//! ```
//!
//! so that memory and time are linear in the number of tokens. A task computes one head, or some columns of v where
//! there are fewer heads than threads.

use super::{
    CpuKernel, Level,
    head::{NormAndGate, Positions, RetentionCall},
    parts::Parts,
    product::{Left, Packed, Target},
    simd::{Simd, Work},
};
use crate::{
    BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, bound::Lengths, operand::f32_results,
};
use densessm_proto::{
    DType, DenseRetNet,
    operators::{self, Schema},
    position,
};

const SCHEMA: &Schema = &operators::RETENTION;
const POSITIONS: &Positions = &Positions::new(SCHEMA);

pub(super) const KERNEL: CpuKernel = KernelRegistration::new(SCHEMA, DType::F32, |attributes, level| {
    Ok(Box::new(Retention { epsilon: attributes.float(POSITIONS.epsilon)?, level: *level }))
});

/// Tokens of a chunk.
const CHUNK: usize = 64;
/// The granularity of the columns of a task.
const MIN_COLUMNS: usize = 192;

#[derive(Debug)]
struct Retention {
    epsilon: f32,
    level: Level,
}

/// The operands and sizes of a call.
struct SequenceCall<'a> {
    time: usize,
    shared: RetentionCall<'a>,
    lengths: Lengths<'a>,
}

impl Kernel for Retention {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let time = call.size(position!(SCHEMA, dimension "time"));
        let call = SequenceCall {
            time,
            shared: RetentionCall::new(call, POSITIONS, self.epsilon)?,
            lengths: call.lengths(position!(SCHEMA, operand "lengths"), time)?,
        };
        let RetentionCall { batch, heads, dv, .. } = call.shared;
        let [o, present] = f32_results(results)?;
        let columns = call.shared.columns_per_task(pool.threads(), MIN_COLUMNS);
        let blocks = dv.div_ceil(columns);
        let (o, present) = (Parts::new(o), Parts::new(present));
        pool.run(batch * heads * blocks, &|task| {
            let (head, first) = (task / blocks, task % blocks * columns);
            let width = columns.min(dv - first);
            self.level.run(Block { call: &call, head, first, width, o, present });
        })?;
        pool.run(batch * time, &|token| {
            for head in token * heads..(token + 1) * heads {
                // SAFETY: each task writes its own token, one head at a time, after all tasks above have ended.
                let o = unsafe { o.part(head * dv, dv) };
                self.level.run(NormAndGate { output: &call.shared.output, head, o });
            }
        })
    }
}

/// Some columns of one head, over all tokens.
struct Block<'a> {
    call: &'a SequenceCall<'a>,
    /// Index in `[B, H]`.
    head: usize,
    first: usize,
    width: usize,
    o: Parts<'a>,
    present: Parts<'a>,
}

impl Block<'_> {
    /// Rotates a chunk's vectors by their positions' angles: `[C, dk]`.
    #[inline(always)]
    fn rotate(&self, x: &[f32], first: usize, tokens: usize, out: &mut [f32]) {
        let SequenceCall { time, shared: RetentionCall { heads, dk, .. }, .. } = *self.call;
        let (row, head) = (self.head / heads, self.head % heads);
        for (i, out) in out.chunks_exact_mut(dk).take(tokens).enumerate() {
            let token = row * time + first + i;
            let x = &x[(token * heads + head) * dk..][..dk];
            let angles = self.call.shared.cos[token * dk / 2..].iter().zip(&self.call.shared.sin[token * dk / 2..]);
            for ((out, x), (cos, sin)) in out.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(angles) {
                out[0] = x[0] * cos - x[1] * sin;
                out[1] = x[1] * cos + x[0] * sin;
            }
        }
    }
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, head: index, first, width, o, present } = self;
        let SequenceCall {
            time,
            shared: RetentionCall { heads, dk, dv, q: queries, k: keys, v: new, state: past, .. },
            ..
        } = *call;
        let (row, head) = (index / heads, index % heads);
        let length = call.lengths.of(row);
        let log_decay = DenseRetNet::decay(head).ln();
        let decay = |tokens: usize| (log_decay * tokens as f64).exp() as f32;
        let powers: [f32; CHUNK + 1] = std::array::from_fn(decay);

        let state = Target { parts: present, start: index * dk * dv + first, row: dv };
        for i in 0..dk {
            // SAFETY: each task writes its own columns of its own head, a row at a time.
            let to = unsafe { present.part(state.start + i * dv, width) };
            to.copy_from_slice(&past[state.start + i * dv..][..width]);
        }
        let (mut q, mut k) = (vec![0.0; CHUNK * dk], vec![0.0; CHUNK * dk]);
        let mut scores = vec![0.0; CHUNK * CHUNK];
        let (mut left, mut values, mut other) = (Left::default(), Packed::default(), Packed::default());

        for start in (0..length).step_by(CHUNK) {
            let tokens = CHUNK.min(length - start);
            self.rotate(queries, start, tokens, &mut q);
            self.rotate(keys, start, tokens, &mut k);
            let of_token = |token: usize| ((row * time + token) * heads + head) * dv + first;
            let out = Target { parts: o, start: of_token(start), row: heads * dv };

            // (q kᵀ) ∘ D
            left.pack(simd, tokens, dk, |token, i, to| column(&q[token * dk + i..], dk, to));
            other.pack(simd, dk, tokens, |i, token, to| column(&k[token * dk + i..], dk, to));
            let target = Target { parts: Parts::new(&mut scores), start: 0, row: CHUNK };
            // SAFETY: the scores are this task's own.
            unsafe { other.multiply(simd, &left, 0.0, target) };
            for (i, scores) in scores.chunks_exact_mut(CHUNK).take(tokens).enumerate() {
                let (past, future) = scores[..tokens].split_at_mut(i + 1);
                past.iter_mut().zip(powers[..=i].iter().rev()).for_each(|(score, power)| *score *= power);
                future.fill(0.0);
            }

            // o = scores v + reach ∘ (q S)
            left.pack(simd, tokens, tokens, |i, j, to| column(&scores[i * CHUNK + j..], CHUNK, to));
            values.pack(simd, tokens, width, |token, column, to| {
                to.copy_from_slice(&new[out.start + token * heads * dv + column..][..to.len()]);
            });
            // SAFETY: each task writes its own columns of its own head.
            unsafe { values.multiply(simd, &left, 0.0, out) };
            left.pack(simd, tokens, dk, |token, i, to| {
                column(&q[token * dk + i..], dk, to);
                to.iter_mut().zip(&powers[token + 1..]).for_each(|(q, power)| *q *= power);
            });
            other.pack(simd, dk, width, |i, column, to| {
                // SAFETY: each task refers to its own columns of its own head, a row at a time.
                to.copy_from_slice(unsafe { present.part(state.start + i * dv + column, to.len()) });
            });
            // SAFETY: each task writes its own columns of its own head.
            unsafe { other.multiply(simd, &left, 1.0, out) };

            // S = γ^C S + (remaining decay ∘ k)ᵀ v
            left.pack(simd, dk, tokens, |i, token, to| {
                let power = powers[tokens - 1 - token];
                to.iter_mut().zip(&k[token * dk + i..]).for_each(|(to, k)| *to = k * power);
            });
            // SAFETY: each task writes its own columns of its own head.
            unsafe { values.multiply(simd, &left, powers[tokens], state) };
        }
        for token in length..time {
            // SAFETY: each task writes its own columns of its own head, a token at a time.
            unsafe { o.part(((row * time + token) * heads + head) * dv + first, width) }.fill(0.0);
        }
    }
}

/// Every `row`-th number.
#[inline(always)]
fn column(from: &[f32], row: usize, to: &mut [f32]) {
    to.iter_mut().zip(from.iter().step_by(row)).for_each(|(to, from)| *to = *from);
}
