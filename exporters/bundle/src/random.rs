//! Random weights that are drawn when they are written, so that only a piece of a tensor is held in memory.

use crate::Error;
use densessm_graph::Part;
use rand::{RngExt, SeedableRng, rngs::ChaCha12Rng};
use sha2::{Digest, Sha256};
use std::{io::Write, iter, ops::ControlFlow, path::Path};

/// Values that are computed and written at once: 4 MiB.
const PIECE: usize = 1 << 20;

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
pub(crate) struct Random<'a> {
    pub(crate) weight: &'a Part,
    pub(crate) initial: Option<Initial>,
    pub(crate) seed: u64,
}

impl Random<'_> {
    /// Writes the values in fp32, little endian, piece by piece. `proceed` is called before each piece and ends the
    /// writing with [`Error::Stopped`] by breaking. `path` is the file, for messages.
    pub(crate) fn write(
        &self,
        path: &Path,
        file: &mut impl Write,
        proceed: impl Fn() -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut values = self.values();
        loop {
            if proceed().is_break() {
                return Err(Error::Stopped);
            }
            let piece: Vec<u8> = values.by_ref().take(PIECE).flat_map(f32::to_le_bytes).collect();
            if piece.is_empty() {
                return Ok(());
            }
            file.write_all(&piece).map_err(Error::io(path))?;
        }
    }

    /// The values in row-major order.
    fn values(&self) -> Box<dyn Iterator<Item = f32>> {
        let shape = &self.weight.shape;
        let elements: usize = shape.iter().product();
        let mut generator = generator(self.seed, &self.weight.name);
        let mut uniform = move |scale: f32| (generator.random::<f32>() * 2.0 - 1.0) * scale;
        match (self.initial, shape.as_slice()) {
            (Some(Initial::Ones), _) => Box::new(iter::repeat_n(1.0, elements)),
            (Some(Initial::LogOfCount), &[.., count]) => {
                Box::new((0..elements).map(move |i| ((i % count + 1) as f32).ln()))
            }
            (Some(Initial::StepSizes), _) => {
                let step = move |_| (0.01 * 10_f32.powf(uniform(1.0))).exp_m1().ln();
                Box::new((0..elements).map(step))
            }
            (_, dimensions) => {
                let scale = match dimensions {
                    [_] => 0.02,
                    [_, columns @ ..] => (3.0 / columns.iter().product::<usize>() as f32).sqrt(),
                    [] => 1.0,
                };
                Box::new((0..elements).map(move |_| uniform(scale)))
            }
        }
    }
}

/// The tensor's own generator, so that its values depend on nothing but seed and name.
fn generator(seed: u64, name: &str) -> ChaCha12Rng {
    let digest = Sha256::digest([&seed.to_le_bytes(), name.as_bytes()].concat());
    ChaCha12Rng::from_seed(digest.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, shape: &[usize], initial: Option<Initial>, seed: u64) -> Vec<f32> {
        let weight = Part::new(name.to_owned(), shape.to_vec());
        Random { weight: &weight, initial, seed }.values().collect()
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let values = |name, seed| values(name, &[96, 2048], None, seed);
        assert_eq!(values("a", 1), values("a", 1));
        assert_ne!(values("a", 1), values("a", 2));
        assert_ne!(values("a", 1), values("b", 1));
    }

    #[test]
    fn what_is_written_are_the_values_until_it_is_stopped() {
        let weight = Part::new("a".to_owned(), vec![2, PIECE]);
        let random = Random { weight: &weight, initial: None, seed: 1 };
        let mut file = Vec::new();
        random.write(Path::new("file"), &mut file, || ControlFlow::Continue(())).unwrap();
        assert!(file.chunks_exact(4).eq(values("a", &[2, PIECE], None, 1).iter().map(|value| value.to_le_bytes())));

        let (mut file, pieces) = (Vec::new(), std::cell::Cell::new(0));
        let one = || {
            pieces.set(pieces.get() + 1);
            if pieces.get() == 1 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        assert!(matches!(random.write(Path::new("file"), &mut file, one), Err(Error::Stopped)));
        assert_eq!(file.len(), 4 * PIECE);
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
