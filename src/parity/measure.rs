//! How far numbers are from what they should be.

use super::{ABSOLUTE, RELATIVE};
use serde::Serialize;

/// Errors of one form on one runtime.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// The runtime.
    pub runtime: String,
    /// The form, and what of it was compared.
    pub name: String,
    /// The largest absolute error.
    pub max_error: f64,
    /// The mean absolute error.
    pub mean_error: f64,
    /// The largest error that is let pass.
    pub allowed: f64,
    /// The least cosine of a vector and what it should be.
    pub cosine: f64,
    /// The largest divergence, in nats, of the distributions that follow from logits; none for states.
    pub divergence: Option<f64>,
    /// In how many vectors the largest number is the one that should be; none for states.
    pub top_1: Option<f64>,
    /// Whether the largest error is let pass.
    pub passed: bool,
}

/// Errors of many vectors, added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    max: f64,
    sum: f64,
    count: usize,
    largest: f64,
    cosine: Option<f64>,
    divergence: f64,
    vectors: usize,
    agreed: usize,
    /// Whether a tensor was further off than its own numbers let pass.
    failed: bool,
}

impl Tally {
    /// Adds a vector beside what it should be.
    pub(super) fn add(&mut self, got: &[f32], expected: &[f64]) {
        if got.len() != expected.len() {
            self.max = f64::INFINITY;
            return;
        }
        let (mut dot, mut of_got, mut of_expected) = (0.0, 0.0, 0.0);
        for (&got, &expected) in got.iter().zip(expected) {
            let got = f64::from(got);
            let error = (got - expected).abs();
            // What is not a number is an error of any size.
            self.max = if error.is_nan() { f64::INFINITY } else { self.max.max(error) };
            self.sum += error;
            self.largest = self.largest.max(expected.abs());
            dot += got * expected;
            of_got += got * got;
            of_expected += expected * expected;
        }
        self.count += got.len();
        let both_zero = of_got == 0.0 && of_expected == 0.0;
        let cosine = if both_zero { 1.0 } else { dot / (of_got.sqrt() * of_expected.sqrt()) };
        self.cosine = Some(self.cosine.map_or(cosine, |least| if cosine >= least { least } else { cosine }));
    }

    /// Adds a tensor, which must be right by the measure of its own numbers.
    pub(super) fn add_tensor(&mut self, got: &[f32], expected: &[f64]) {
        let mut own = Self::default();
        own.add(got, expected);
        self.failed |= own.max > own.allowed();
        self.add(got, expected);
    }

    /// Adds a vector of logits, whose distribution and largest number count, too.
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

    pub(super) fn allowed(&self) -> f64 {
        ABSOLUTE + RELATIVE * self.largest
    }

    pub(super) fn max(&self) -> f64 {
        self.max
    }

    pub(super) fn measure(&self, runtime: &str, name: impl Into<String>) -> Measure {
        let logits = self.vectors > 0;
        Measure {
            runtime: runtime.to_owned(),
            name: name.into(),
            max_error: self.max,
            mean_error: self.sum / self.count.max(1) as f64,
            allowed: self.allowed(),
            cosine: self.cosine.unwrap_or(1.0),
            divergence: logits.then_some(self.divergence),
            top_1: logits.then(|| self.agreed as f64 / self.vectors as f64),
            passed: self.max <= self.allowed() && !self.failed,
        }
    }
}

/// The place of the largest number.
pub(super) fn argmax(logits: &[f64]) -> usize {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(place, _)| place)
}

fn log_softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = x.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
    x.iter().map(|x| x - log_sum).collect()
}
