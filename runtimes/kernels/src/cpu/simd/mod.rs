//! Vectors of fp32, whose instructions are chosen at run time.
//!
//! The one design decision: a level of instructions is a *token*, a value that exists only where the processor has
//! them. Kernels are written once over [`Simd`] and compiled once for each level inside [`Level::run`], whose
//! features they inherit because everything between is inlined.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod functions;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

pub(crate) use functions::Functions;

use std::{fmt, sync::OnceLock};

/// Arithmetic on vectors of fp32. A value of the type proves that the processor has the instructions.
///
/// Loads and stores move `LANES` elements at the front of a slice, and panic if it is shorter.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector.
    type F: Copy + Send + Sync;
    /// Elements of a vector.
    const LANES: usize;
    /// Rows and vectors of the tile that a matrix product holds in registers.
    const TILE: (usize, usize);

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn store(self, to: &mut [f32], x: Self::F);
    /// As `store`, bypassing the cache if the processor can and the slice is aligned to a vector. Other threads see what
    /// was written after [`Simd::fence`].
    #[inline(always)]
    fn stream(self, to: &mut [f32], x: Self::F) {
        self.store(to, x);
    }
    /// Waits for streaming stores.
    #[inline(always)]
    fn fence(self) {}
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger one; `b` if `a` is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller one; `b` if `a` is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `2^k x`, where the lowest bits of `bits` are the integer k; the exponent of the result must fit.
    fn shift(self, x: Self::F, bits: Self::F) -> Self::F;
    /// `y` if it is NaN, else `x`.
    fn keep_nan(self, x: Self::F, y: Self::F) -> Self::F;
    /// Prefetches the cache line at the front of a slice; does nothing where there is no such instruction.
    #[inline(always)]
    fn prefetch(self, _from: &[f32]) {}
    /// The sum of all lanes.
    fn sum(self, a: Self::F) -> f32;
}

/// A computation that is compiled for every level.
pub(crate) trait Work {
    /// Its result.
    type Output;
    /// Runs it. Implementations must be `#[inline(always)]` to be compiled with the level's features.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A level of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Level {
    /// The level that every processor has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The best level that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().last().unwrap_or(Self::PORTABLE))
    }

    /// All levels that this processor has, the best one last.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [avx2::Avx2::new().map(Kind::Avx2), avx512::Avx512::new().map(Kind::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::Neon::new().map(Kind::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special = [None; 0];
        std::iter::once(Self::PORTABLE).chain(special.into_iter().flatten().map(Self))
    }

    /// Runs a computation with this level's instructions.
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Kind::Portable => work.run(portable::Portable),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(token) => token.run(work),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(token) => token.run(work),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(token) => work.run(token),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "AVX2 and FMA",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "NEON",
        })
    }
}
