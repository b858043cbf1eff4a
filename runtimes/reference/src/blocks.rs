//! The functions that every model consists of.

use crate::Real;
use ndarray::{Array1, Array2, ArrayViewMut1, Axis};

/// `silu(x) = x / (1 + e^-x)`.
pub(crate) fn silu<F: Real>(x: F) -> F {
    x / (F::one() + (-x).exp())
}

/// `softplus(x) = max(x, 0) + log1p(e^-|x|)`.
pub(crate) fn softplus<F: Real>(x: F) -> F {
    x.max(F::zero()) + (-x.abs()).exp().ln_1p()
}

/// `w ∘ x / sqrt(mean(x²) + eps)`, for every row.
pub(crate) fn rms_norm<F: Real>(x: &Array2<F>, weight: &Array1<F>, eps: f64) -> Array2<F> {
    let mut y = x.clone();
    y.axis_iter_mut(Axis(0)).for_each(|row| rms_norm_of(row, weight, eps));
    y
}

/// As [`rms_norm`], of one vector in place.
pub(crate) fn rms_norm_of<F: Real>(mut x: ArrayViewMut1<'_, F>, weight: &Array1<F>, eps: f64) {
    let mean = x.iter().map(|&x| x * x).sum::<F>() / F::of(x.len() as f64);
    let scale = (mean + F::of(eps)).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, &w)| *x = w * *x / scale);
}
