//! Retention over a sequence, in chunks of tokens.
//!
//! Within a chunk of C tokens the parallel form, between chunks the recurrent one:
//!
//! ```text
//! o_i = Σ_{j≤i} γ^(i-j) (q_i·k_j) v_j + γ^(i+1) q_i S        S ← γ^C S + Σ_j γ^(C-1-j) k_jᵀ v_j
//! ```
//!
//! So memory and time are linear in the tokens. Heads are shared out, in columns of v where there are few.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::{Arity, Lengths, Operands},
    parts::Parts,
    product::{Left, Packed, Target},
    retention_step::{End, Ending, sizes},
    simd::{Simd, Work},
};
use densessm_proto::DenseRetNet;

/// Tokens of a chunk.
const CHUNK: usize = 64;
/// Columns that are not divided further.
const FEWEST_COLUMNS: usize = 192;

#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) heads: usize,
    pub(crate) eps: f32,
    pub(crate) level: Level,
}

/// A call, its shapes checked.
struct Call<'a> {
    batch: usize,
    time: usize,
    heads: usize,
    dk: usize,
    dv: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    state: &'a [f32],
    lengths: Lengths<'a>,
}

impl Retention {
    pub(crate) const OPERANDS: &'static [Slot] = &[
        Slot::required("q"),
        Slot::required("k"),
        Slot::required("v"),
        Slot::required("cos"),
        Slot::required("sin"),
        Slot::required("scale"),
        Slot::required("state"),
        Slot::required("gate"),
        Slot::required("norm"),
        Slot::lengths(Arity::Required),
    ];

    fn check<'a>(&self, operands: Operands<'a, '_>) -> Result<(Call<'a>, Ending<'a>), Error> {
        let heads = self.heads;
        let [batch, time, dk, dv] = sizes(&operands, heads)?;
        let of_tokens = |index, size| operands.floats(index, [batch, time, size]);
        let call = Call {
            batch,
            time,
            heads,
            dk,
            dv,
            q: of_tokens(0, heads * dk)?,
            k: of_tokens(1, heads * dk)?,
            v: of_tokens(2, heads * dv)?,
            cos: of_tokens(3, dk / 2)?,
            sin: of_tokens(4, dk / 2)?,
            state: operands.floats(6, [batch, heads, dk, dv])?,
            lengths: operands.lengths(9, batch, time)?,
        };
        let ending = Ending {
            scale: of_tokens(5, heads)?,
            gate: of_tokens(7, heads * dv)?,
            norm: operands.floats(8, [dv])?,
            eps: self.eps,
        };
        Ok((call, ending))
    }
}

impl Kernel for Retention {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let (call, ending) = self.check(Operands { slots: Self::OPERANDS, given: operands })?;
        let [o, present] = buffers(results, [call.v.len(), call.state.len()])?;
        let heads = call.batch * call.heads;
        let wanted = pool.threads().div_ceil(heads.max(1)).max(1);
        let columns = call.dv.div_ceil(wanted).next_multiple_of(FEWEST_COLUMNS).min(call.dv);
        let blocks = call.dv.div_ceil(columns);
        let (o, present) = (Parts::new(o), Parts::new(present));
        pool.run(heads * blocks, &|task| {
            let (head, first) = (task / blocks, task % blocks * columns);
            let width = columns.min(call.dv - first);
            self.level.run(Block { call: &call, head, first, width, o, present });
        })?;
        pool.run(call.batch * call.time, &|token| {
            for head in token * call.heads..(token + 1) * call.heads {
                // SAFETY: each task writes its own token, a head at a time, after all others have ended.
                let o = unsafe { o.part(head * call.dv, call.dv) };
                self.level.run(End { ending: &ending, head, o });
            }
        })
    }
}

/// Some columns of one head, over all tokens.
struct Block<'a> {
    call: &'a Call<'a>,
    /// Counted through the batch.
    head: usize,
    first: usize,
    width: usize,
    o: Parts<'a>,
    present: Parts<'a>,
}

impl Block<'_> {
    /// Turns a chunk's vectors by their positions' angles: `[C, dk]`.
    #[inline(always)]
    fn turned(&self, x: &[f32], first: usize, tokens: usize, out: &mut [f32]) {
        let Call { time, heads, dk, .. } = *self.call;
        let (row, head) = (self.head / heads, self.head % heads);
        for (i, out) in out.chunks_exact_mut(dk).take(tokens).enumerate() {
            let token = row * time + first + i;
            let x = &x[(token * heads + head) * dk..][..dk];
            let angles = self.call.cos[token * dk / 2..].iter().zip(&self.call.sin[token * dk / 2..]);
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
        let Self { call, head: place, first, width, o, present } = self;
        let Call { time, heads, dk, dv, .. } = *call;
        let (row, head) = (place / heads, place % heads);
        let length = call.lengths.of(row);
        let log_decay = DenseRetNet::decay(head).ln();
        let decay = |tokens: usize| (log_decay * tokens as f64).exp() as f32;
        let powers: [f32; CHUNK + 1] = std::array::from_fn(decay);

        let state = Target { parts: present, start: place * dk * dv + first, row: dv };
        for i in 0..dk {
            // SAFETY: each task writes its own columns of its own head, a row at a time.
            let to = unsafe { present.part(state.start + i * dv, width) };
            to.copy_from_slice(&call.state[state.start + i * dv..][..width]);
        }
        let (mut q, mut k) = (vec![0.0; CHUNK * dk], vec![0.0; CHUNK * dk]);
        let mut scores = vec![0.0; CHUNK * CHUNK];
        let (mut left, mut values, mut other) = (Left::default(), Packed::default(), Packed::default());

        for start in (0..length).step_by(CHUNK) {
            let tokens = CHUNK.min(length - start);
            self.turned(call.q, start, tokens, &mut q);
            self.turned(call.k, start, tokens, &mut k);
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
                to.copy_from_slice(&call.v[out.start + token * heads * dv + column..][..to.len()]);
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
