//! The vectors that read out the neighbours' states: `r^i = P_iᵀ (silu(s) ∘ c)`.
//!
//! They have N numbers per token and are computed once, before the channels are divided among tasks.

use super::{
    Level,
    parts::scratch,
    simd::{Functions, Simd, Work},
};
use crate::{BoundCall, Error, Operand};
use densessm_proto::operators::{Schema, require};

/// The positions of the operands that the vectors follow from, for a constant.
pub(super) struct Positions {
    states: usize,
    c: usize,
    state_gate: usize,
    neighbours: usize,
    projections: usize,
    projection: usize,
}

impl Positions {
    pub(super) const fn new(schema: &Schema) -> Self {
        let projections = require(schema.group("projections"));
        Self {
            states: require(schema.dimension("states")),
            c: require(schema.operand("c")),
            state_gate: require(schema.operand("state_gate")),
            neighbours: require(schema.group("neighbours")),
            projections,
            projection: require(schema.groups[projections].operand("projection")),
        }
    }
}

/// The operands that the vectors follow from.
#[derive(Clone, Copy)]
pub(super) struct Readout<'a, 'c> {
    /// Output vectors of the layer `[B, T, N]`.
    pub(super) c: &'a [f32],
    /// State gate before silu `[B, T, N]`.
    gate: Option<&'a [f32]>,
    states: usize,
    neighbours: usize,
    /// Whether each neighbour has a projection.
    projected: bool,
    call: &'c BoundCall<'c, Operand<'a>>,
    positions: &'static Positions,
}

impl<'a, 'c> Readout<'a, 'c> {
    pub(super) fn new(call: &'c BoundCall<'c, Operand<'a>>, positions: &'static Positions) -> Result<Self, Error> {
        Ok(Self {
            c: call.f32(positions.c)?,
            gate: call.optional_f32(positions.state_gate),
            states: call.size(positions.states),
            neighbours: call.repetitions(positions.neighbours),
            projected: call.repetitions(positions.projections) > 0,
            call,
            positions,
        })
    }

    /// `P_i [N, N]`.
    fn projection(&self, i: usize) -> &'a [f32] {
        self.call.member_f32(self.positions.projections, i, self.positions.projection)
    }

    /// Computes the vectors and lends them to `compute`.
    pub(super) fn computed<R>(
        &self,
        level: Level,
        compute: impl FnOnce(Readouts<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (states, all) = (self.states, self.c.len());
        if self.neighbours == 0 || (self.gate.is_none() && !self.projected) {
            return compute(Readouts { values: self.c, each: 0, states });
        }
        let projected = if self.projected { self.neighbours } else { 0 };
        scratch((1 + projected) * all, |memory| {
            let (gated, rest) = memory.split_at_mut(all);
            level.run(Gated { gate: self.gate, c: self.c, gated });
            if !self.projected {
                return compute(Readouts { values: gated, each: 0, states });
            }
            for (i, readouts) in rest.chunks_mut(all.max(1)).enumerate() {
                let weight = self.projection(i);
                for (vector, readout) in gated.chunks(states).zip(readouts.chunks_mut(states)) {
                    readout.fill(0.0);
                    for (x, row) in vector.iter().zip(weight.chunks(states)) {
                        readout.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
                    }
                }
            }
            compute(Readouts { values: rest, each: all, states })
        })
    }
}

/// The vectors `[B, T, N]`: one set for all neighbours, or one for each.
#[derive(Clone, Copy)]
pub(super) struct Readouts<'r> {
    values: &'r [f32],
    each: usize,
    states: usize,
}

impl<'r> Readouts<'r> {
    /// The vector of neighbour i at an index in `[B, T]`.
    #[inline(always)]
    pub(super) fn of(&self, i: usize, position: usize) -> &'r [f32] {
        &self.values[i * self.each + position * self.states..][..self.states]
    }
}

/// `silu(gate) ∘ c`.
struct Gated<'a> {
    gate: Option<&'a [f32]>,
    c: &'a [f32],
    gated: &'a mut [f32],
}

impl Work for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Some(gate) = self.gate else { return self.gated.copy_from_slice(self.c) };
        for ((gate, c), gated) in
            gate.chunks(S::LANES).zip(self.c.chunks(S::LANES)).zip(self.gated.chunks_mut(S::LANES))
        {
            simd.store_some(gated, simd.mul(simd.silu(simd.load_some(gate)), simd.load_some(c)));
        }
    }
}
