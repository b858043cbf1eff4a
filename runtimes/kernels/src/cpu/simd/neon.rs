//! NEON: 4 elements per vector, 32 registers. Every aarch64 processor that runs a general system has it.

#![allow(unused_unsafe, reason = "where a build's target has NEON, its intrinsics may be safe to call")]

use super::Simd;
use std::arch::aarch64::*;

/// Proof that the processor has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        cfg!(target_feature = "neon").then_some(Self(()))
    }
}

/// A call of an intrinsic that touches no memory.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: the token is the proof that the build's target has NEON, and the intrinsic touches no memory.
        unsafe { $call }
    };
}

impl Simd for Neon {
    type F = float32x4_t;
    const LANES: usize = 4;
    const TILE: (usize, usize) = (6, 4);

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        intrinsic!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        let from = &from[..Self::LANES];
        // SAFETY: the token is the proof that the build's target has NEON; 4 numbers may be read.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], x: float32x4_t) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the token is the proof that the build's target has NEON; 4 numbers may be written.
        unsafe { vst1q_f32(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        intrinsic!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsic!(vbslq_f32(vcltq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        intrinsic!(vabsq_f32(a))
    }

    #[inline(always)]
    fn shift(self, x: float32x4_t, bits: float32x4_t) -> float32x4_t {
        intrinsic!({
            let k = vshlq_n_s32::<23>(vreinterpretq_s32_f32(bits));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), k))
        })
    }

    #[inline(always)]
    fn keep_nan(self, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        intrinsic!(vbslq_f32(vceqq_f32(y, y), x, y))
    }

    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        intrinsic!(vaddvq_f32(a))
    }
}
