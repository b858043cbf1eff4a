//! Vectors as arrays: for processors without a level of their own, and as the reference for the other levels.

use super::Simd;

/// The token of the level that needs no instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

const LANES: usize = 4;
type F = [f32; LANES];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

impl Simd for Portable {
    type F = F;
    const LANES: usize = LANES;
    const TILE: (usize, usize) = (4, 2);

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> F {
        std::array::from_fn(|lane| from[lane])
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], x: F) {
        to[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: F, b: F, c: F) -> F {
        // Rounded twice: a fused operation in software is far slower.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn shift(self, x: F, bits: F) -> F {
        zip(x, bits, |x, bits| f32::from_bits(x.to_bits().wrapping_add(bits.to_bits() << 23)))
    }

    #[inline(always)]
    fn keep_nan(self, x: F, y: F) -> F {
        zip(x, y, |x, y| if y.is_nan() { y } else { x })
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
}
