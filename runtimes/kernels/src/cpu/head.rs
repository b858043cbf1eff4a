//! The operands that retention over a sequence and one token of it share, and the norm of a head's output.

use super::simd::{Functions, Simd, Work};
use crate::{BoundCall, Error, Operand};
use densessm_proto::operators::{Schema, require};

/// The positions of the operands, dimensions and attribute that both operators have, for a constant.
pub(super) struct Positions {
    batch: usize,
    heads: usize,
    pairs: usize,
    head_value: usize,
    q: usize,
    k: usize,
    v: usize,
    cos: usize,
    sin: usize,
    scale: usize,
    state: usize,
    gate: usize,
    norm: usize,
    pub(super) epsilon: usize,
}

impl Positions {
    pub(super) const fn new(schema: &Schema) -> Self {
        Self {
            batch: require(schema.dimension("batch")),
            heads: require(schema.dimension("heads")),
            pairs: require(schema.dimension("pairs")),
            head_value: require(schema.dimension("head_value")),
            q: require(schema.operand("q")),
            k: require(schema.operand("k")),
            v: require(schema.operand("v")),
            cos: require(schema.operand("cos")),
            sin: require(schema.operand("sin")),
            scale: require(schema.operand("scale")),
            state: require(schema.operand("state")),
            gate: require(schema.operand("gate")),
            norm: require(schema.operand("norm")),
            epsilon: require(schema.attribute("epsilon")),
        }
    }
}

/// The operands and sizes of a call of either operator; T is 1 for a single token.
pub(super) struct RetentionCall<'a> {
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Size of a head's key.
    pub(super) dk: usize,
    /// Size of a head's value.
    pub(super) dv: usize,
    /// `[B, T, H dk]`.
    pub(super) q: &'a [f32],
    /// `[B, T, H dk]`.
    pub(super) k: &'a [f32],
    /// `[B, T, H dv]`.
    pub(super) v: &'a [f32],
    /// `[B, T, dk/2]`.
    pub(super) cos: &'a [f32],
    /// `[B, T, dk/2]`.
    pub(super) sin: &'a [f32],
    /// `[B, H, dk, dv]`.
    pub(super) state: &'a [f32],
    pub(super) output: OutputNorm<'a>,
}

/// The norm and gate of a head's output: `RMSNorm(o / sqrt(s)) ∘ gate`.
pub(super) struct OutputNorm<'a> {
    /// `1/sqrt(s)`: `[B, T, H]`.
    scale: &'a [f32],
    /// `[B, T, H dv]`.
    gate: &'a [f32],
    /// Weight `[dv]`.
    norm: &'a [f32],
    epsilon: f32,
}

impl<'a> RetentionCall<'a> {
    pub(super) fn new(
        call: &BoundCall<'_, Operand<'a>>,
        positions: &'static Positions,
        epsilon: f32,
    ) -> Result<Self, Error> {
        Ok(Self {
            batch: call.size(positions.batch),
            heads: call.size(positions.heads),
            dk: 2 * call.size(positions.pairs),
            dv: call.size(positions.head_value),
            q: call.f32(positions.q)?,
            k: call.f32(positions.k)?,
            v: call.f32(positions.v)?,
            cos: call.f32(positions.cos)?,
            sin: call.f32(positions.sin)?,
            state: call.f32(positions.state)?,
            output: OutputNorm {
                scale: call.f32(positions.scale)?,
                gate: call.f32(positions.gate)?,
                norm: call.f32(positions.norm)?,
                epsilon,
            },
        })
    }

    /// The columns of `v` that one task computes: whole heads if there are enough of them for all threads, else a
    /// multiple of `granularity`.
    pub(super) fn columns_per_task(&self, threads: usize, granularity: usize) -> usize {
        let parts = threads.div_ceil((self.batch * self.heads).max(1)).max(1);
        self.dv.div_ceil(parts).next_multiple_of(granularity).min(self.dv)
    }
}

/// Applies the norm and the gate to one head's output.
pub(super) struct NormAndGate<'a> {
    pub(super) output: &'a OutputNorm<'a>,
    /// Index in `[B, T, H]`.
    pub(super) head: usize,
    /// `[dv]`.
    pub(super) o: &'a mut [f32],
}

impl Work for NormAndGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { output, head, o } = self;
        let width = o.len();
        let mut squares = simd.splat(0.0);
        for o in o.chunks(S::LANES) {
            let x = simd.load_some(o);
            squares = simd.mul_add(x, x, squares);
        }
        let scale = output.scale[head];
        let mean = simd.sum(squares) / width as f32 * scale * scale;
        let factor = simd.splat(scale / (mean + output.epsilon).sqrt());
        let norm = &output.norm[..width];
        let gates = output.gate[head * width..].chunks(S::LANES);
        for (o, (norm, gate)) in o.chunks_mut(S::LANES).zip(norm.chunks(S::LANES).zip(gates)) {
            let weight = simd.mul(simd.load_some(norm), simd.load_some(gate));
            let x = simd.mul(simd.mul(simd.load_some(o), factor), weight);
            simd.store_some(o, x);
        }
    }
}
