//! Elementary functions over slices, as the kernels use them.

use super::{
    Level,
    simd::{Functions, Simd, Work},
};

/// An elementary function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `2^x` for x up to 127, to within 3 units in the last place; 2^-126 for x below -126.
    Exp2,
    /// `e^x` for x in -87 … 88, to within 2 units in the last place; x is clamped to this range.
    Exp,
    /// `x / (1 + e^-x)`, to within 5 units in the last place for x above -88; beyond, to within 1e-36.
    Silu,
    /// `log(1 + e^x)`, to within 5 units in the last place for x above -87; beyond, to within 2e-38.
    Softplus,
}

impl Function {
    /// Applies the function to every element.
    pub fn apply(self, level: Level, values: &mut [f32]) {
        level.run(Apply { function: self, values });
    }
}

struct Apply<'a> {
    function: Function,
    values: &'a mut [f32],
}

impl Work for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for piece in self.values.chunks_mut(S::LANES) {
            let x = simd.load_some(piece);
            let y = match self.function {
                Function::Exp2 => simd.exp2(x),
                Function::Exp => simd.exp(x),
                Function::Silu => simd.silu(x),
                Function::Softplus => simd.softplus(x),
            };
            simd.store_some(piece, y);
        }
    }
}
