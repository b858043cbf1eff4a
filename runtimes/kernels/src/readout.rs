//! The vectors that neighbours' states are read with: `r^i = P_iᵀ (silu(s) ∘ c)`.
//!
//! They have N numbers a token, so they are computed once, before the channels are shared out.

use crate::{
    Error, Level,
    operands::Operands,
    parts::scratch,
    simd::{Functions, Simd, Work},
};

/// What they follow from, checked.
#[derive(Clone, Copy)]
pub(crate) struct Readout<'a, 'c> {
    /// Output vectors of the layer `[B, T, N]`.
    pub(crate) c: &'a [f32],
    /// State gate before silu `[B, T, N]`.
    gate: Option<&'a [f32]>,
    states: usize,
    neighbours: usize,
    operands: Operands<'a, 'c>,
    layout: Layout,
}

/// Where the operands of neighbours lie.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// The first one.
    pub(crate) first: usize,
    /// How many each has besides its projection; those come behind all others.
    pub(crate) each: usize,
    /// Whether each has a projection.
    projected: bool,
}

impl Layout {
    /// From the number of operands there are.
    ///
    /// # Errors
    /// When they are not `each`, or one more, for every neighbour.
    pub(crate) fn new(
        operands: &Operands<'_, '_>,
        first: usize,
        each: usize,
        neighbours: usize,
    ) -> Result<Self, Error> {
        let got = operands.from(first);
        let projected = neighbours > 0 && got == neighbours * (each + 1);
        if !projected && got != neighbours * each {
            let problem =
                format!("expected {each} or {} for each of {neighbours} neighbours, got {got} in all", each + 1);
            return Err(Error::new("neighbour operands", problem));
        }
        Ok(Self { first, each, projected })
    }

    /// Where the operands of neighbour i begin.
    pub(crate) fn of(&self, i: usize) -> usize {
        self.first + i * self.each
    }
}

impl<'a, 'c> Readout<'a, 'c> {
    /// Checks `c`, the gate and the projections.
    pub(crate) fn check(
        operands: Operands<'a, 'c>,
        [batch, time, states]: [usize; 3],
        [c, gate]: [usize; 2],
        layout: Layout,
        neighbours: usize,
    ) -> Result<Self, Error> {
        let c = operands.floats(c, [batch, time, states])?;
        let gate = operands.maybe(gate, [batch, time, states])?;
        let readout = Self { c, gate, states, neighbours, operands, layout };
        (0..neighbours).try_for_each(|i| readout.projection(i).map(|_| ()))?;
        Ok(readout)
    }

    /// `P_i [N, N]`; none if it is the identity.
    fn projection(&self, i: usize) -> Result<Option<&'a [f32]>, Error> {
        if !self.layout.projected {
            return Ok(None);
        }
        self.operands.floats(self.layout.of(self.neighbours) + i, [self.states, self.states]).map(Some)
    }

    /// Computes the vectors for as long as they are used.
    pub(crate) fn computed<R>(
        &self,
        level: Level,
        use_them: impl FnOnce(Readouts<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (states, all) = (self.states, self.c.len());
        if self.neighbours == 0 || (self.gate.is_none() && !self.layout.projected) {
            return use_them(Readouts { values: self.c, each: 0, states });
        }
        let projected = if self.layout.projected { self.neighbours } else { 0 };
        scratch((1 + projected) * all, |memory| {
            let (gated, rest) = memory.split_at_mut(all);
            level.run(Gated { gate: self.gate, c: self.c, gated });
            if !self.layout.projected {
                return use_them(Readouts { values: gated, each: 0, states });
            }
            for (i, readouts) in rest.chunks_mut(all.max(1)).enumerate() {
                let Some(weight) = self.projection(i)? else { continue };
                for (vector, readout) in gated.chunks(states).zip(readouts.chunks_mut(states)) {
                    readout.fill(0.0);
                    for (x, row) in vector.iter().zip(weight.chunks(states)) {
                        readout.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
                    }
                }
            }
            use_them(Readouts { values: rest, each: all, states })
        })
    }
}

/// The vectors, `[B, T, N]` once for all neighbours or for each.
#[derive(Clone, Copy)]
pub(crate) struct Readouts<'r> {
    values: &'r [f32],
    each: usize,
    states: usize,
}

impl<'r> Readouts<'r> {
    /// That of neighbour i at a position in `[B, T]`.
    #[inline(always)]
    pub(crate) fn of(&self, i: usize, position: usize) -> &'r [f32] {
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
