//! Random weights that are drawn when they are written, so that only one tensor is held in memory.

use densessm_graph::Part;
use rand::{RngExt, SeedableRng, rngs::ChaCha12Rng};
use safetensors::{Dtype, View};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, cell::Cell, ops::ControlFlow};

/// How a tensor starts, where it is not uniformly random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initial {
    /// Ones: norms and skips.
    Ones,
    /// `ln 1, ln 2, …` along the last axis: decay rates.
    LogOfCount,
    /// The inverse softplus of step sizes that are spread evenly in the logarithm over 0.001 … 0.1.
    StepSizes,
}

/// A tensor whose values are computed when it is written.
pub(crate) struct Random<'a, F> {
    pub(crate) weight: &'a Part,
    pub(crate) initial: Option<Initial>,
    pub(crate) seed: u64,
    pub(crate) tell: &'a F,
    pub(crate) stopped: &'a Cell<bool>,
    pub(crate) done: usize,
    pub(crate) total: usize,
}

impl<F: Fn(usize, usize) -> ControlFlow<()>> Random<'_, F> {
    fn values(&self) -> Vec<f32> {
        let shape = &self.weight.shape;
        let elements: usize = shape.iter().product();
        let mut generator = generator(self.seed, &self.weight.name);
        let mut uniform = |scale: f32| -> Vec<f32> {
            (0..elements).map(|_| (generator.random::<f32>() * 2.0 - 1.0) * scale).collect()
        };
        match (self.initial, shape.as_slice()) {
            (Some(Initial::Ones), _) => vec![1.0; elements],
            (Some(Initial::LogOfCount), [.., count]) => (0..elements).map(|i| ((i % count + 1) as f32).ln()).collect(),
            (Some(Initial::StepSizes), _) => {
                uniform(1.0).iter().map(|u| (0.01 * 10_f32.powf(*u)).exp_m1().ln()).collect()
            }
            (_, [_]) => uniform(0.02),
            (_, [_, columns @ ..]) => uniform((3.0 / columns.iter().product::<usize>() as f32).sqrt()),
            (_, []) => uniform(1.0),
        }
    }
}

/// The tensor's own generator, so that its values depend on nothing but seed and name.
fn generator(seed: u64, name: &str) -> ChaCha12Rng {
    let digest = Sha256::digest([&seed.to_le_bytes(), name.as_bytes()].concat());
    ChaCha12Rng::from_seed(digest.into())
}

impl<F: Fn(usize, usize) -> ControlFlow<()>> View for Random<'_, F> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.weight.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A view cannot fail: once stopped, zeros are written to a file that is then removed.
        if self.stopped.get() || (self.tell)(self.done, self.total).is_break() {
            self.stopped.set(true);
            return Cow::Owned(vec![0; self.data_len()]);
        }
        Cow::Owned(self.values().iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.weight.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, shape: &[usize], initial: Option<Initial>, seed: u64) -> Vec<f32> {
        let weight = Part::new(name.to_owned(), shape.to_vec());
        let (tell, stopped) = (|_, _| ControlFlow::Continue(()), Cell::new(false));
        Random { weight: &weight, initial, seed, tell: &tell, stopped: &stopped, done: 0, total: 1 }.values()
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let values = |name, seed| values(name, &[96, 2048], None, seed);
        assert_eq!(values("a", 1), values("a", 1));
        assert_ne!(values("a", 1), values("a", 2));
        assert_ne!(values("a", 1), values("b", 1));
    }

    #[test]
    fn projections_have_the_variance_of_one_over_their_inputs() {
        let projection = values("x_proj", &[96, 2048], None, 1);
        let variance = projection.iter().map(|w| f64::from(w * w)).sum::<f64>() / projection.len() as f64;
        assert!((variance * 2048.0 - 1.0).abs() < 0.02, "expected 1 / fan-in, got {variance}");
    }

    #[test]
    fn decay_rates_and_step_sizes_start_as_in_training() {
        let steps = values("dt_proj.bias", &[2048], Some(Initial::StepSizes), 1);
        let softplus = |x: f32| f64::from(x).exp().ln_1p();
        assert!(steps.iter().all(|&x| (0.000_99..0.101).contains(&softplus(x))), "step sizes out of 0.001 … 0.1");
        let decay = values("A_log", &[2, 3], Some(Initial::LogOfCount), 1);
        let row = [0.0, 2_f32.ln(), 3_f32.ln()];
        assert_eq!(decay, [row, row].concat());
    }
}
