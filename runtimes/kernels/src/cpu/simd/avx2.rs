//! AVX2 and FMA: 8 elements per vector, 16 registers.

use super::{Simd, Work};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn inside<W: Work>(token: Avx2, work: W) -> W::Output {
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

impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const TILE: (usize, usize) = (6, 2);

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        intrinsic!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: the token is the proof that the processor has the intrinsic; 8 numbers may be read.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], x: __m256) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the token is the proof that the processor has the intrinsic; 8 numbers may be written.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn stream(self, to: &mut [f32], x: __m256) {
        let to = &mut to[..Self::LANES];
        if to.as_ptr().cast::<__m256>().is_aligned() {
            // SAFETY: the token is the proof that the processor has the intrinsic; that many numbers may be written, on
            // the boundary that it wants.
            unsafe { _mm256_stream_ps(to.as_mut_ptr(), x) }
        } else {
            self.store(to, x);
        }
    }

    #[inline(always)]
    fn fence(self) {
        intrinsic!(_mm_sfence());
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        intrinsic!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        intrinsic!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        intrinsic!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }

    #[inline(always)]
    fn shift(self, x: __m256, bits: __m256) -> __m256 {
        intrinsic!({
            let k = _mm256_slli_epi32::<23>(_mm256_castps_si256(bits));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), k))
        })
    }

    #[inline(always)]
    fn keep_nan(self, x: __m256, y: __m256) -> __m256 {
        intrinsic!(_mm256_blendv_ps(x, y, _mm256_cmp_ps::<_CMP_UNORD_Q>(y, y)))
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32]) {
        // SAFETY: the token is the proof that the processor has the intrinsic; it is a hint, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        intrinsic!({
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        })
    }
}
