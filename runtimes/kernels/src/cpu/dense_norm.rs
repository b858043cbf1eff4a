//! `RMSNorm(own + silu(gate) ∘ Σ neighbours)`: DenseRetNet's dense connection of keys and values.

use super::{
    CpuKernel, Level,
    parts::Parts,
    simd::{Functions, Simd, Work},
};
use crate::{BoundCall, Error, Kernel, KernelRegistration, Operand, Pool, ResultBuffer, operand::f32_results};
use densessm_proto::{
    DType,
    operators::{self, GroupSchema, Schema},
    position,
};

const SCHEMA: &Schema = &operators::DENSE_NORM;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];

pub(super) const KERNEL: CpuKernel = KernelRegistration::new(SCHEMA, DType::F32, |attributes, level| {
    let epsilon = attributes.float(position!(SCHEMA, attribute "epsilon"))?;
    Ok(Box::new(DenseNorm { epsilon, level: *level }))
});

#[derive(Debug)]
struct DenseNorm {
    epsilon: f32,
    level: Level,
}

/// The operands and sizes of a call.
struct NormCall<'a, 'c> {
    width: usize,
    own: &'a [f32],
    weight: &'a [f32],
    gate: &'a [f32],
    call: &'c BoundCall<'c, Operand<'a>>,
    neighbours: usize,
    epsilon: f32,
}

impl<'a> NormCall<'a, '_> {
    /// The vectors of a neighbour.
    #[inline(always)]
    fn neighbour(&self, i: usize) -> &'a [f32] {
        self.call.member_f32(NEIGHBOURS, i, position!(NEIGHBOUR, operand "vectors"))
    }
}

impl Kernel for DenseNorm {
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let rows = call.size(position!(SCHEMA, dimension "batch")) * call.size(position!(SCHEMA, dimension "time"));
        let call = NormCall {
            width: call.size(position!(SCHEMA, dimension "width")),
            own: call.f32(position!(SCHEMA, operand "own"))?,
            weight: call.f32(position!(SCHEMA, operand "weight"))?,
            gate: call.f32(position!(SCHEMA, operand "gate"))?,
            call,
            neighbours: call.repetitions(NEIGHBOURS),
            epsilon: self.epsilon,
        };
        let [y] = f32_results(results)?;
        let y = Parts::new(y);
        let run_row = |row: usize| self.level.run(Row { call: &call, row, y });
        match rows {
            1 => run_row(0),
            _ => pool.run(rows, &run_row)?,
        }
        Ok(())
    }
}

/// One token's vector.
struct Row<'a> {
    call: &'a NormCall<'a, 'a>,
    row: usize,
    y: Parts<'a>,
}

impl Work for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let call = self.call;
        let width = call.width;
        let (from, to) = (self.row * width, (self.row + 1) * width);
        // SAFETY: each task writes its own row, once.
        let y = unsafe { self.y.part(from, width) };
        y.fill(0.0);
        for i in 0..call.neighbours {
            let neighbour = call.neighbour(i);
            for (sum, x) in y.chunks_mut(S::LANES).zip(neighbour[from..to].chunks(S::LANES)) {
                let x = simd.add(simd.load_some(sum), simd.load_some(x));
                simd.store_some(sum, x);
            }
        }
        let mut squares = simd.splat(0.0);
        let operands = call.own[from..to].chunks(S::LANES).zip(call.gate[from..to].chunks(S::LANES));
        for (y, (own, gate)) in y.chunks_mut(S::LANES).zip(operands) {
            let gate = simd.silu(simd.load_some(gate));
            let x = simd.mul_add(gate, simd.load_some(y), simd.load_some(own));
            squares = simd.mul_add(x, x, squares);
            simd.store_some(y, x);
        }
        let factor = simd.splat((simd.sum(squares) / width as f32 + call.epsilon).sqrt().recip());
        for (y, weight) in y.chunks_mut(S::LANES).zip(call.weight.chunks(S::LANES)) {
            let x = simd.mul(simd.mul(simd.load_some(y), factor), simd.load_some(weight));
            simd.store_some(y, x);
        }
    }
}
