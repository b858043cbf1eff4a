//! How far results may be off: one table for every comparison of the project, by what is compared and by precision.
//!
//! The table stands in the contract because tests of every crate read it, and because a bundle's precision, which the
//! manifest states, decides on it. A bound is `absolute + relative · max|expected|`: rounding errors of a sum grow with
//! the largest of its terms, not with the sum itself.

use crate::Precision;
use std::fmt;

/// What is compared: one operator on its own, or values of a whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToleranceClass {
    /// A matrix product, or a standard operator, on its own.
    Projection,
    /// The causal convolution on its own.
    Convolution,
    /// The selective scan, or its step, on its own.
    Scan,
    /// Retention, or its step, on its own.
    Retention,
    /// A normalisation on its own.
    Norm,
    /// Values inside a model's graph, after any number of layers.
    Activations,
    /// The logits of a whole model.
    Logits,
    /// The states that a whole model carries.
    States,
    /// The perplexity of a text.
    Perplexity,
}

/// How far values may be from those expected: `absolute + relative · max|expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The part of the bound that does not depend on the values.
    pub absolute: f64,
    /// The part of the bound that is proportional to the largest expected magnitude.
    pub relative: f64,
}

/// The reference implementation in f64 beside logits that PyTorch computed in fp32.
pub const REFERENCE_GOLDENS: Tolerance = Tolerance::new(2e-5, 2e-5);
/// The reference implementation beside itself in f64, in calls of other lengths: only the order of sums differs.
pub const REFERENCE_F64: Tolerance = Tolerance::new(1e-12, 1e-12);
/// The reference implementation in f32, beside itself or PyTorch: norms of small vectors enlarge rounding errors.
pub const REFERENCE_F32: Tolerance = Tolerance::new(2e-4, 2e-4);
/// The error of the kernels' `exp`, in units in the last place (ulp) of fp32.
pub const EXP_ULP: f64 = 2.0;
/// The error of the kernels' `exp2`, in ulp.
pub const EXP2_ULP: f64 = 3.0;
/// The error of the kernels' `softplus`, in ulp.
pub const SOFTPLUS_ULP: f64 = 5.0;
/// The error of the kernels' `silu`, in ulp.
pub const SILU_ULP: f64 = 5.0;
/// A formula of a few f64 operations beside the same formula, arranged otherwise.
pub const ARITHMETIC_F64: Tolerance = Tolerance::new(1e-12, 1e-9);
/// The fraction of its tolerance that a correct bundle's error stays below, so that passing is no coincidence.
pub const HEADROOM: f64 = 0.5;

impl Tolerance {
    const fn new(absolute: f64, relative: f64) -> Self {
        Self { absolute, relative }
    }

    /// Returns the tolerance of a class of comparisons at the precision of a bundle.
    pub const fn of(class: ToleranceClass, precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => match class {
                ToleranceClass::Projection => Self::new(1e-5, 1e-5),
                // A few hundred terms of order one, summed in any order.
                ToleranceClass::Convolution | ToleranceClass::Scan | ToleranceClass::Norm => Self::new(1e-6, 2e-6),
                // As many terms, twice in a row.
                ToleranceClass::Retention => Self::new(2e-6, 4e-6),
                // The same sums in another order, through all layers of a model.
                ToleranceClass::Activations | ToleranceClass::Logits | ToleranceClass::States => Self::new(2e-4, 3e-4),
                // Four digits.
                ToleranceClass::Perplexity => Self::new(0.0, 5e-5),
            },
            Precision::Fp16 => Self::half(class, 1.0),
            // 8 significant bits instead of 11.
            Precision::Bf16 => Self::half(class, 8.0),
        }
    }

    /// The tolerance of results whose activations are rounded to half precision: `scale` is 1 for fp16, whose unit
    /// roundoff is 2^-11, and in proportion to it for other types.
    const fn half(class: ToleranceClass, scale: f64) -> Self {
        match class {
            // Operands and the result are rounded; sums are fp32.
            ToleranceClass::Projection | ToleranceClass::Norm | ToleranceClass::Convolution | ToleranceClass::Scan => {
                Self::new(1e-3 * scale, 1e-3 * scale)
            }
            ToleranceClass::Retention => Self::new(2e-3 * scale, 2e-3 * scale),
            // Roundings of all layers, which are independent of each other and add up as the root of their number.
            ToleranceClass::Activations | ToleranceClass::Logits | ToleranceClass::States => {
                Self::new(1e-2 * scale, 1e-2 * scale)
            }
            // Errors of logits have no direction, so that their effect on the mean is of second order.
            ToleranceClass::Perplexity => Self::new(0.0, 1e-3),
        }
    }

    /// Returns the largest error allowed where `largest` is the largest expected magnitude.
    pub fn bound(&self, largest: f64) -> f64 {
        self.absolute + self.relative * largest
    }

    /// Compares values with those expected, all under one bound: `max|got - expected| <= bound(max|expected|)`.
    ///
    /// # Errors
    /// When the numbers of values differ, or one of them is out of tolerance or not a number.
    pub fn compare<G, E>(&self, got: &[G], expected: &[E]) -> Result<(), OutOfTolerance>
    where
        G: Copy + Into<f64>,
        E: Copy + Into<f64>,
    {
        if got.len() != expected.len() {
            return Err(OutOfTolerance::Count { expected: expected.len(), got: got.len() });
        }
        let largest = expected.iter().fold(0.0_f64, |largest, &value| largest.max(value.into().abs()));
        let bound = self.bound(largest);
        for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let (got, expected) = (got.into(), expected.into());
            // What is not a number is within no bound.
            let within = (got - expected).abs() <= bound;
            if !within {
                return Err(OutOfTolerance::Value { index, expected, bound, got });
            }
        }
        Ok(())
    }
}

/// The first way in which values differ from those expected.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OutOfTolerance {
    /// The numbers of values differ.
    Count {
        /// How many values were expected.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A value is further off than its bound.
    Value {
        /// The value's index.
        index: usize,
        /// The value expected.
        expected: f64,
        /// The largest error allowed.
        bound: f64,
        /// The value found.
        got: f64,
    },
}

impl fmt::Display for OutOfTolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { expected, got } => write!(f, "expected {expected} values, got {got}"),
            Self::Value { index, expected, bound, got } => {
                write!(f, "value {index}: expected {expected} within {bound:e}, got {got}")
            }
        }
    }
}

impl std::error::Error for OutOfTolerance {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_compared_under_the_bound_of_the_largest() {
        let tolerance = Tolerance::new(0.5, 0.25);
        assert_eq!(tolerance.bound(2.0), 1.0);
        assert_eq!(tolerance.compare(&[2.0, 0.9], &[2.0, 0.0]), Ok(()));
        let error = tolerance.compare(&[2.0, 1.1], &[2.0, 0.0]).err();
        assert_eq!(error, Some(OutOfTolerance::Value { index: 1, expected: 0.0, bound: 1.0, got: 1.1 }));
    }

    #[test]
    fn what_is_not_a_number_and_what_is_missing_is_out_of_tolerance() {
        let tolerance = Tolerance::new(f64::MAX, 0.0);
        for got in [f32::NAN, f32::INFINITY] {
            assert!(tolerance.compare(&[got], &[0.0_f32]).is_err(), "{got}");
        }
        assert!(tolerance.compare(&[0.0, 0.0], &[0.0]).is_err());
    }
}
