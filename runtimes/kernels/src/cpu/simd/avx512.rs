//! AVX-512: 16 elements per vector, 32 registers.

use super::{Simd, Work};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F and DQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")).then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512dq")]
        fn inside<W: Work>(token: Avx512, work: W) -> W::Output {
            work.run(token)
        }
        // SAFETY: the token is the proof that the processor has these features.
        unsafe { inside(self, work) }
    }
}

/// A call of an intrinsic that touches no memory.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: the token is the proof that the processor has the intrinsic, which touches no memory.
        unsafe { $call }
    };
}

impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const TILE: (usize, usize) = (8, 3);

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsic!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..Self::LANES];
        // SAFETY: the token is the proof that the processor has the intrinsic; 16 numbers may be read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], x: __m512) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the token is the proof that the processor has the intrinsic; 16 numbers may be written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn stream(self, to: &mut [f32], x: __m512) {
        let to = &mut to[..Self::LANES];
        if to.as_ptr().cast::<__m512>().is_aligned() {
            // SAFETY: the token is the proof that the processor has the intrinsic; that many numbers may be written, on
            // the boundary that it wants.
            unsafe { _mm512_stream_ps(to.as_mut_ptr(), x) }
        } else {
            self.store(to, x);
        }
    }

    #[inline(always)]
    fn fence(self) {
        intrinsic!(_mm_sfence());
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsic!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        intrinsic!(_mm512_abs_ps(a))
    }

    #[inline(always)]
    fn shift(self, x: __m512, bits: __m512) -> __m512 {
        intrinsic!({
            let k = _mm512_slli_epi32::<23>(_mm512_castps_si512(bits));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), k))
        })
    }

    #[inline(always)]
    fn keep_nan(self, x: __m512, y: __m512) -> __m512 {
        intrinsic!(_mm512_mask_mov_ps(x, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(y, y), y))
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32]) {
        // SAFETY: the token is the proof that the processor has the intrinsic; it is a hint, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        intrinsic!(_mm512_reduce_add_ps(a))
    }
}
