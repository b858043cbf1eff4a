//! `RMSNorm(own + silu(gate) ∘ Σ neighbours)`: how DenseRetNet's keys and values take in those of the layers below.

use crate::{
    Error, Kernel, Level, Operand, Pool, Slot,
    kernel::buffers,
    operands::Operands,
    parts::Parts,
    simd::{Functions, Simd, Work},
};

#[derive(Debug)]
pub(crate) struct DenseNorm {
    pub(crate) eps: f32,
    pub(crate) level: Level,
}

impl DenseNorm {
    pub(crate) const OPERANDS: &'static [Slot] =
        &[Slot::required("own"), Slot::required("weight"), Slot::required("gate"), Slot::repeated("neighbour")];
}

/// A call, its shapes checked.
struct Call<'a, 'c> {
    sizes: [usize; 3],
    own: &'a [f32],
    weight: &'a [f32],
    gate: &'a [f32],
    operands: Operands<'a, 'c>,
    neighbours: usize,
    eps: f32,
}

impl<'a> Call<'a, '_> {
    fn neighbour(&self, i: usize) -> Result<&'a [f32], Error> {
        self.operands.floats(3 + i, self.sizes)
    }
}

impl Kernel for DenseNorm {
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error> {
        let operands = Operands { slots: Self::OPERANDS, given: operands };
        let sizes = operands.sizes::<3>(0)?;
        let call = Call {
            sizes,
            own: operands.floats(0, sizes)?,
            weight: operands.floats(1, [sizes[2]])?,
            gate: operands.floats(2, sizes)?,
            operands,
            neighbours: operands.from(3),
            eps: self.eps,
        };
        (0..call.neighbours).try_for_each(|i| call.neighbour(i).map(|_| ()))?;
        let [y] = buffers(results, [call.own.len()])?;
        let y = Parts::new(y);
        let vector = |row: usize| self.level.run(Row { call: &call, row, y });
        match sizes[0] * sizes[1] {
            1 => vector(0),
            rows => pool.run(rows, &vector)?,
        }
        Ok(())
    }
}

/// One token's vector.
struct Row<'a> {
    call: &'a Call<'a, 'a>,
    row: usize,
    y: Parts<'a>,
}

impl Work for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let call = self.call;
        let width = call.sizes[2];
        let (from, to) = (self.row * width, (self.row + 1) * width);
        // SAFETY: each task writes its own row, once.
        let y = unsafe { self.y.part(from, width) };
        y.fill(0.0);
        for i in 0..call.neighbours {
            let Ok(neighbour) = call.neighbour(i) else { continue };
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
        let factor = simd.splat((simd.sum(squares) / width as f32 + call.eps).sqrt().recip());
        for (y, weight) in y.chunks_mut(S::LANES).zip(call.weight.chunks(S::LANES)) {
            let x = simd.mul(simd.mul(simd.load_some(y), factor), simd.load_some(weight));
            simd.store_some(y, x);
        }
    }
}
