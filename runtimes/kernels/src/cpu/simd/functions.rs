//! Elementary functions on vectors, with the error bounds that `tests/suite/functions.rs` checks.

use super::Simd;

/// `ln 2` in two parts; the product of the first with any exponent is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Rounds a number below 2^22 to an integer when added to it; the integer is then in the lowest bits.
const INTEGER: f32 = 12_582_912.0;
/// `(e^r - 1 - r) / r²` for |r| ≤ ½ ln 2, to 3e-9 of e^r.
const EXP: [f32; 5] = [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_888, 0.001_395_048_8];
/// `2^f` for |f| ≤ ½, to 8e-8.
const EXP2: [f32; 6] = [1.0, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_542, 0.001_327_647_2];
/// `(atanh(s)/s - 1) / s²` in s², for s ≤ ⅓, to 2e-10 of atanh.
const ATANH: [f32; 5] = [0.333_333_37, 0.199_994_39, 0.143_084_42, 0.107_138_276, 0.121_504_724];

/// Elementary functions on any level's vectors.
pub(crate) trait Functions: Simd {
    /// `2^x` for x up to 127, to within 3 units in the last place; 2^-126 below that.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        let x = self.max(x, self.splat(-126.0));
        let bits = self.add(x, self.splat(INTEGER));
        let f = self.sub(x, self.sub(bits, self.splat(INTEGER)));
        self.shift(self.polynomial(f, &EXP2), bits)
    }

    /// `e^x` for x in -87 … 88, to within 2 units in the last place; x is clamped to this range.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let bounded = self.min(self.max(x, self.splat(-87.0)), self.splat(88.0));
        let bits = self.mul_add(bounded, self.splat(LOG2_E), self.splat(INTEGER));
        let k = self.sub(bits, self.splat(INTEGER));
        let r = self.mul_add(k, self.splat(-LN_2[0]), bounded);
        let r = self.mul_add(k, self.splat(-LN_2[1]), r);
        let e = self.mul_add(self.mul(r, r), self.polynomial(r, &EXP), r);
        self.keep_nan(self.shift(self.add(e, self.splat(1.0)), bits), x)
    }

    /// `x / (1 + e^-x)`, to within 5 units in the last place for x above -88; beyond, to within 1e-36.
    #[inline(always)]
    fn silu(self, x: Self::F) -> Self::F {
        let e = self.exp(self.sub(self.splat(0.0), x));
        self.div(x, self.add(self.splat(1.0), e))
    }

    /// `log(1 + e^x) = max(x, 0) + 2 atanh(e / (2 + e))`, e = e^-|x|, to within 5 units in the last place
    /// for x above -87; beyond, to within 2e-38.
    #[inline(always)]
    fn softplus(self, x: Self::F) -> Self::F {
        let e = self.exp(self.sub(self.splat(0.0), self.abs(x)));
        let s = self.div(e, self.add(e, self.splat(2.0)));
        let q = self.mul(s, s);
        let twice = self.add(s, s);
        let log = self.mul_add(self.mul(twice, q), self.polynomial(q, &ATANH), twice);
        self.keep_nan(self.add(self.max(x, self.splat(0.0)), log), x)
    }

    /// `c[0] + c[1] x + …`, by Horner's rule.
    #[inline(always)]
    fn polynomial<const N: usize>(self, x: Self::F, c: &[f32; N]) -> Self::F {
        let mut y = self.splat(c[N - 1]);
        for c in c[..N - 1].iter().rev() {
            y = self.mul_add(y, x, self.splat(*c));
        }
        y
    }

    /// As [`Simd::load`], from a slice that may be shorter than a vector; missing lanes are zero.
    #[inline(always)]
    fn load_some(self, from: &[f32]) -> Self::F {
        if from.len() >= Self::LANES {
            return self.load(from);
        }
        let mut padded = [0.0; MAX_LANES];
        padded[..from.len()].copy_from_slice(from);
        self.load(&padded)
    }

    /// As [`Simd::store`], to a slice that may be shorter than a vector; superfluous lanes are dropped.
    #[inline(always)]
    fn store_some(self, to: &mut [f32], x: Self::F) {
        if to.len() >= Self::LANES {
            return self.store(to, x);
        }
        let mut padded = [0.0; MAX_LANES];
        self.store(&mut padded, x);
        let length = to.len();
        to.copy_from_slice(&padded[..length]);
    }
}

/// Lanes of the longest vector of any level.
const MAX_LANES: usize = 16;

impl<S: Simd> Functions for S {}
