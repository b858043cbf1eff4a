//! Errors of a set of values, and the curves that errors form over positions, layers and steps.

use crate::{
    argmax,
    proto::{GraphKind, Tolerance},
};
use serde::Serialize;
use std::fmt;

/// The errors of one execution mode on one runtime.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Measure {
    /// The runtime.
    pub runtime: String,
    /// The execution mode.
    pub mode: String,
    /// The values that were compared.
    pub values: ComparedValues,
    /// The largest absolute error.
    pub max_error: f64,
    /// The mean absolute error.
    pub mean_error: f64,
    /// The largest absolute error allowed.
    pub tolerance: f64,
    /// The smallest cosine similarity between a vector and the one expected.
    pub cosine: f64,
    /// The largest Kullback-Leibler divergence, in nats, of the distribution that logits give from the one expected;
    /// none for states.
    pub kl_divergence: Option<f64>,
    /// The fraction of positions at which the most likely token is the one expected; none for states.
    pub top_1: Option<f64>,
    /// Whether every tensor is within its tolerance.
    pub passed: bool,
}

/// The values that a [`Measure`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComparedValues {
    /// The logits of every position that the mode returns.
    Logits,
    /// The states after the prompt.
    States,
}

impl fmt::Display for ComparedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logits => "logits",
            Self::States => "states",
        })
    }
}

impl Measure {
    /// Returns the largest error as a fraction of the tolerance: at most 1 if the measure passes.
    pub fn fraction(&self) -> f64 {
        self.max_error / self.tolerance
    }
}

/// The errors of one graph on one runtime, along an axis that the place of the curve in
/// [`Parity`](super::Parity) states: positions of the prompt, layers, or steps.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ErrorCurve {
    /// The runtime.
    pub runtime: String,
    /// The graph that computed the values.
    pub graph: GraphKind,
    /// The errors, in the order of the axis.
    pub points: Vec<ErrorPoint>,
}

impl ErrorCurve {
    /// Returns whether every point is within its tolerance.
    pub fn passes(&self) -> bool {
        self.points.iter().all(|point| point.fraction() <= 1.0)
    }
}

/// One point of an [`ErrorCurve`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ErrorPoint {
    /// The position or layer, from 0, or the number of steps.
    pub at: usize,
    /// The largest absolute error there.
    pub max_error: f64,
    /// The largest absolute error allowed there.
    pub tolerance: f64,
}

impl ErrorPoint {
    /// Returns the largest error as a fraction of the tolerance: at most 1 if the point passes.
    pub fn fraction(&self) -> f64 {
        self.max_error / self.tolerance
    }
}

/// Accumulates the errors of many vectors.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    rule: Tolerance,
    max: f64,
    sum: f64,
    count: usize,
    largest: f64,
    cosine: Option<f64>,
    divergence: f64,
    vectors: usize,
    agreed: usize,
    /// Whether a tensor was out of the tolerance that its own values give.
    failed: bool,
}

impl Tally {
    pub(super) fn new(rule: Tolerance) -> Self {
        Self {
            rule,
            max: 0.0,
            sum: 0.0,
            count: 0,
            largest: 0.0,
            cosine: None,
            divergence: 0.0,
            vectors: 0,
            agreed: 0,
            failed: false,
        }
    }

    /// Adds a vector.
    pub(super) fn add(&mut self, got: &[f32], expected: &[f64]) {
        self.max = self.max.max(max_error(got, expected));
        if got.len() != expected.len() {
            return;
        }
        let (mut dot, mut of_got, mut of_expected) = (0.0, 0.0, 0.0);
        for (&got, &expected) in got.iter().zip(expected) {
            let got = f64::from(got);
            self.sum += (got - expected).abs();
            dot += got * expected;
            of_got += got * got;
            of_expected += expected * expected;
        }
        self.largest = self.largest.max(largest(expected));
        self.count += got.len();
        let both_zero = of_got == 0.0 && of_expected == 0.0;
        let cosine = if both_zero { 1.0 } else { dot / (of_got.sqrt() * of_expected.sqrt()) };
        // Keeps a cosine that is not a number, which no number is greater than or equal to.
        self.cosine = Some(self.cosine.map_or(cosine, |least| if cosine >= least { least } else { cosine }));
    }

    /// Adds a tensor, which must be within the tolerance that its own values give.
    pub(super) fn add_tensor(&mut self, got: &[f32], expected: &[f64]) {
        let within = max_error(got, expected) <= self.rule.bound(largest(expected));
        self.failed |= !within;
        self.add(got, expected);
    }

    /// Adds a vector of logits, whose distribution and most likely token are compared, too.
    pub(super) fn add_logits(&mut self, got: &[f32], expected: &[f64]) {
        self.add(got, expected);
        if got.len() != expected.len() {
            return;
        }
        let wide: Vec<f64> = got.iter().map(|&x| f64::from(x)).collect();
        let (p, q) = (log_softmax(expected), log_softmax(&wide));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.divergence = self.divergence.max(if divergence.is_nan() { f64::INFINITY } else { divergence.max(0.0) });
        self.vectors += 1;
        self.agreed += usize::from(argmax(&wide) == argmax(expected));
    }

    /// The point of a curve that the accumulated errors make.
    pub(super) fn point(&self, at: usize) -> ErrorPoint {
        ErrorPoint { at, max_error: self.max, tolerance: self.rule.bound(self.largest) }
    }

    pub(super) fn measure(&self, runtime: &str, mode: &str, values: ComparedValues) -> Measure {
        let logits = self.vectors > 0;
        let tolerance = self.rule.bound(self.largest);
        Measure {
            runtime: runtime.to_owned(),
            mode: mode.to_owned(),
            values,
            max_error: self.max,
            mean_error: self.sum / self.count.max(1) as f64,
            tolerance,
            cosine: self.cosine.unwrap_or(1.0),
            kl_divergence: logits.then_some(self.divergence),
            top_1: logits.then(|| self.agreed as f64 / self.vectors as f64),
            passed: self.max <= tolerance && !self.failed,
        }
    }
}

/// The largest absolute error; infinite where a value is not a number or the lengths differ.
pub(super) fn max_error(got: &[f32], expected: &[f64]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let errors = got.iter().zip(expected).map(|(&got, &expected)| (f64::from(got) - expected).abs());
    errors.fold(0.0, |max, error| if error.is_nan() { f64::INFINITY } else { max.max(error) })
}

/// The largest magnitude.
pub(super) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn log_softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = x.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
    x.iter().map(|x| x - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Tolerance = Tolerance { absolute: 0.5, relative: 0.0 };

    #[test]
    fn what_is_not_a_number_and_what_is_missing_fails() {
        for got in [&[f32::NAN, 0.0][..], &[0.0, f32::INFINITY], &[0.0]] {
            let mut tally = Tally::new(RULE);
            tally.add_logits(got, &[0.0, 0.0]);
            assert!(!tally.measure("", "", ComparedValues::States).passed, "{got:?}");
        }
    }

    #[test]
    fn a_tensor_is_not_excused_by_larger_ones() {
        let mut tally = Tally::new(Tolerance { absolute: 0.0, relative: 0.1 });
        tally.add_tensor(&[100.0], &[100.0]);
        assert!(tally.measure("", "", ComparedValues::States).passed);
        tally.add_tensor(&[1.5], &[1.0]);
        let measure = tally.measure("", "", ComparedValues::States);
        assert!(!measure.passed && measure.fraction() < 1.0, "{measure:?}");
    }
}
