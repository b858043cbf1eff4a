//! One token of retention: `S ← γ S + kᵀ v`, `o = RMSNorm(q S / sqrt(s)) ∘ g`.
//!
//! A state is read once and written once, row after row: one stream in and one out is what memory likes best, while `v`
//! and the sums in `o` stay in the first cache. Heads are shared out whole if there are enough of them, else in columns.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::Operands,
    parts::Parts,
    simd::{Functions, Simd, Work},
};
use densessm_proto::DenseRetNet;

/// Columns that are not divided further.
const FEWEST_COLUMNS: usize = 64;
/// Numbers of a layer's states from which on those of all layers are taken to be more than the cache holds: what is
/// written is not read before the next token, and is written past it.
const LARGE: usize = 1 << 18;

#[derive(Debug)]
pub(crate) struct RetentionStep {
    pub(crate) heads: usize,
    pub(crate) eps: f32,
    pub(crate) level: Level,
}

/// A call, its shapes checked.
struct Call<'a> {
    batch: usize,
    heads: usize,
    dk: usize,
    dv: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    state: &'a [f32],
}

/// How a head's output ends: `RMSNorm(o / sqrt(s)) ∘ g`, for both forms.
pub(crate) struct Ending<'a> {
    /// `1/sqrt(s)`: `[B, T, H]`.
    pub(crate) scale: &'a [f32],
    /// `[B, T, E]`.
    pub(crate) gate: &'a [f32],
    /// `[dv]`.
    pub(crate) norm: &'a [f32],
    pub(crate) eps: f32,
}

/// Sizes of a call of either form, of its operands `q`, `v` and `cos`.
///
/// # Errors
/// When the heads do not divide them into pairs of keys.
pub(crate) fn sizes(operands: &Operands<'_, '_>, heads: usize) -> Result<[usize; 4], Error> {
    let [batch, time, keys] = operands.sizes(0)?;
    let [_, _, values] = operands.sizes(2)?;
    if keys == 0 || !keys.is_multiple_of(2 * heads) {
        return Err(Error::new("q", format!("expected a multiple of {} keys, got {keys}", 2 * heads)));
    }
    if values == 0 || !values.is_multiple_of(heads) {
        return Err(Error::new("v", format!("expected a multiple of {heads} values, got {values}")));
    }
    Ok([batch, time, keys / heads, values / heads])
}

impl RetentionStep {
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
    ];

    fn check<'a>(&self, operands: Operands<'a, '_>) -> Result<(Call<'a>, Ending<'a>), Error> {
        let heads = self.heads;
        let [batch, time, dk, dv] = sizes(&operands, heads)?;
        if time != 1 {
            return Err(Error::new("q", format!("expected one token, got {time}")));
        }
        let of_token = |index, size| operands.floats(index, [batch, 1, size]);
        let call = Call {
            batch,
            heads,
            dk,
            dv,
            q: of_token(0, heads * dk)?,
            k: of_token(1, heads * dk)?,
            v: of_token(2, heads * dv)?,
            cos: of_token(3, dk / 2)?,
            sin: of_token(4, dk / 2)?,
            state: operands.floats(6, [batch, heads, dk, dv])?,
        };
        let ending = Ending {
            scale: of_token(5, heads)?,
            gate: of_token(7, heads * dv)?,
            norm: operands.floats(8, [dv])?,
            eps: self.eps,
        };
        Ok((call, ending))
    }
}

impl Kernel for RetentionStep {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let (call, ending) = self.check(Operands { slots: Self::OPERANDS, given: operands })?;
        let [o, present] = buffers(results, [call.v.len(), call.state.len()])?;
        let heads = call.batch * call.heads;
        // As few divisions as give every thread a part: long rows are what memory likes.
        let wanted = pool.threads().div_ceil(heads.max(1)).max(1);
        let columns = call.dv.div_ceil(wanted).next_multiple_of(FEWEST_COLUMNS).min(call.dv);
        let blocks = call.dv.div_ceil(columns);
        {
            let (o, present) = (Parts::new(o), Parts::new(present));
            pool.run(heads * blocks, &|task| {
                let (head, first) = (task / blocks, task % blocks * columns);
                let width = columns.min(call.dv - first);
                let stream = call.state.len() >= LARGE;
                self.level.run(Block { call: &call, head, first, width, stream, o, present });
            })?;
        }
        for (head, o) in o.chunks_exact_mut(call.dv).enumerate() {
            self.level.run(End { ending: &ending, head, o });
        }
        Ok(())
    }
}

/// Some columns of one head's state.
struct Block<'a> {
    call: &'a Call<'a>,
    /// Counted through the batch.
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
        let Call { heads, dk, dv, .. } = *call;
        let row = head / heads;
        let decay = DenseRetNet::decay(head % heads) as f32;
        let (cos, sin) = (&call.cos[row * dk / 2..][..dk / 2], &call.sin[row * dk / 2..][..dk / 2]);
        let (q, k) = (&call.q[head * dk..][..dk], &call.k[head * dk..][..dk]);
        let v = &call.v[head * dv + first..][..width];
        // SAFETY: each task writes its own columns of its own head.
        let o = unsafe { self.o.part(head * dv + first, width) };
        o.fill(0.0);

        // Component i of a vector that was turned by the position's angles.
        let turned = |x: &[f32], i: usize| {
            let (a, b) = (x[i & !1], x[i | 1]);
            let (cos, sin) = (cos[i / 2], sin[i / 2]);
            if i.is_multiple_of(2) { a * cos - b * sin } else { b * cos + a * sin }
        };
        let from = |i: usize| (head * dk + i) * dv + first;
        for i in 0..dk {
            let past = &call.state[from(i)..][..width];
            // SAFETY: each task writes its own columns of its own head, a row at a time.
            let present = unsafe { self.present.part(from(i), width) };
            let weights = [decay, turned(q, i), turned(k, i)];
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

/// The ending of one head's output.
pub(crate) struct End<'a> {
    pub(crate) ending: &'a Ending<'a>,
    /// Counted through tokens and batch.
    pub(crate) head: usize,
    /// `[dv]`.
    pub(crate) o: &'a mut [f32],
}

impl Work for End<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { ending, head, o } = self;
        let width = o.len();
        let mut squares = simd.splat(0.0);
        for o in o.chunks(S::LANES) {
            let x = simd.load_some(o);
            squares = simd.mul_add(x, x, squares);
        }
        let scale = ending.scale[head];
        let mean = simd.sum(squares) / width as f32 * scale * scale;
        let factor = simd.splat(scale / (mean + ending.eps).sqrt());
        let norm = &ending.norm[..width];
        let gates = ending.gate[head * width..].chunks(S::LANES);
        for (o, (norm, gate)) in o.chunks_mut(S::LANES).zip(norm.chunks(S::LANES).zip(gates)) {
            let weight = simd.mul(simd.load_some(norm), simd.load_some(gate));
            let x = simd.mul(simd.mul(simd.load_some(o), factor), weight);
            simd.store_some(o, x);
        }
    }
}
