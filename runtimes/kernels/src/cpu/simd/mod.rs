//! Vectors of fp32, chosen at run time.
//!
//! The one design decision: a level of instructions is a *token*, a value that can only be had where the processor
//! has them. Kernels are written once over [`Simd`] and compiled once for each level inside [`Level::run`], whose
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

/// Arithmetic on vectors of fp32; a value of the type is the proof that the processor has it.
///
/// Loads and stores move `LANES` numbers from the front of a slice, and panic where it is shorter.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector.
    type F: Copy + Send + Sync;
    /// Numbers in a vector.
    const LANES: usize;
    /// Rows and vectors of the tile that a matrix product holds in registers.
    const TILE: (usize, usize);

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn store(self, to: &mut [f32], x: Self::F);
    /// As `store`, past the cache where the processor can and the slice begins on a vector's boundary. What was written
    /// so is there for other threads after [`Simd::fence`].
    #[inline(always)]
    fn stream(self, to: &mut [f32], x: Self::F) {
        self.store(to, x);
    }
    /// Waits for what was streamed.
    #[inline(always)]
    fn fence(self) {}
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger one; `b` where `a` is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller one; `b` where `a` is not a number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `2^k x`, the lowest bits of `bits` being the integer k; the exponent of what comes out must fit.
    fn shift(self, x: Self::F, bits: Self::F) -> Self::F;
    /// `x` where `y` is a number, else `y`.
    fn keep_nan(self, x: Self::F, y: Self::F) -> Self::F;
    /// Asks for the cache line at the front of a slice, which will be loaded soon; where there is no way to, nothing.
    #[inline(always)]
    fn prefetch(self, _from: &[f32]) {}
    /// The sum of all lanes.
    fn sum(self, a: Self::F) -> f32;
}

/// Work to be compiled for every level.
pub(crate) trait Work {
    /// What it gives.
    type Output;
    /// Does it. Implementations are `#[inline(always)]`, or they miss the level's features.
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
    /// What every processor runs.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The best that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().last().unwrap_or(Self::PORTABLE))
    }

    /// All that this processor has, the best one last.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [avx2::Avx2::new().map(Kind::Avx2), avx512::Avx512::new().map(Kind::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::Neon::new().map(Kind::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special = [None; 0];
        std::iter::once(Self::PORTABLE).chain(special.into_iter().flatten().map(Self))
    }

    /// Does the work with this level's instructions.
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
