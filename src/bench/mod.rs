//! How fast a model is, and how fast the machine would let it be.
//!
//! The one design decision: each figure stands beside a bound that was measured in the same run on the same device with
//! the same threads, and is computed from what a token needs at least: bytes to read and operations to do.

mod bandwidth;
mod machine;
mod measure;
mod render;
mod roofline;

pub use machine::Machine;
pub use measure::measure;
pub use roofline::{Bound, Limit, Roofline};

use crate::inspect::TokenCost;
use serde::Serialize;
use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchPlan {
    /// Prompt lengths in tokens, each at least 1.
    pub prompt_tokens: Vec<usize>,
    /// Tokens to decode after each prompt, at least 1.
    pub new_tokens: usize,
    /// Numbers of sequences side by side, each at least 1.
    pub batches: Vec<usize>,
    /// Positions to decode at without having been fed that far: a state's size does not depend on them.
    pub positions: Vec<usize>,
    /// Threads within one operator; the runtime's own choice if absent.
    pub threads: Option<usize>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// Version of this tool.
    pub version: &'static str,
    /// When it was measured, in UTC.
    pub date: String,
    /// The machine.
    pub machine: Machine,
    /// `ort` or `tract`.
    pub runtime: &'static str,
    /// Version of the runtime.
    pub runtime_version: String,
    /// `cpu`, `cuda` or `tensorrt`.
    pub device: String,
    /// Threads within one operator.
    pub threads: usize,
    /// The bundle.
    pub bundle: PathBuf,
    /// The model in words.
    pub model: String,
    /// What a token costs.
    pub token: TokenCost,
    /// Seconds to load the bundle's graphs.
    pub load_seconds: f64,
    /// What the machine can do at best; absent if it was not measured.
    pub roofline: Option<Roofline>,
    /// Each prompt length with each batch.
    pub runs: Vec<Run>,
    /// Decoding at given positions.
    pub positions: Vec<AtPosition>,
    /// The most memory the process had resident, in bytes, while the bundle was loaded and run; absent where the system
    /// does not say.
    pub peak_resident_bytes: Option<u64>,
    /// Whether all that was asked for was measured.
    pub complete: bool,
}

/// One prompt length with one batch.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Tokens of each row's prompt.
    pub prompt_tokens: usize,
    /// Rows.
    pub batch: usize,
    /// Reading the prompt.
    pub prefill: Prefill,
    /// Decoding after it.
    pub decode: Decode,
    /// The most memory that the process had resident meanwhile, in bytes; since its start where the system counts only
    /// that.
    pub peak_resident_bytes: Option<u64>,
}

/// How fast prompts are read.
#[derive(Clone, Debug, Serialize)]
pub struct Prefill {
    /// How often it was measured, after a run to warm up.
    pub runs: usize,
    /// Median time of a run.
    pub seconds: f64,
    /// Tokens of all rows per second.
    pub tokens_per_second: f64,
    /// Median time from fresh states to the first token of each row, chosen greedily.
    pub time_to_first_token_seconds: f64,
    /// What the roofline allows.
    pub bound: Option<Bound>,
}

/// How fast tokens come one after the other.
#[derive(Clone, Debug, Serialize)]
pub struct Decode {
    /// How many steps were measured, after one to warm up.
    pub steps: usize,
    /// Tokens of all rows per second.
    pub tokens_per_second: f64,
    /// Times of a step, in seconds.
    pub step_seconds: Latency,
    /// What the roofline allows.
    pub bound: Option<Bound>,
}

/// Times that so many of a hundred steps do not exceed, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// 50 of them.
    pub p50: f64,
    /// 90 of them.
    pub p90: f64,
    /// 99 of them.
    pub p99: f64,
}

/// Decoding at a position.
#[derive(Clone, Debug, Serialize)]
pub struct AtPosition {
    /// Tokens that each row counts as consumed.
    pub position: usize,
    /// Rows.
    pub batch: usize,
    /// How fast.
    pub decode: Decode,
}

impl Decode {
    /// From the seconds of each of at least one step of `batch` rows.
    fn of(seconds: &[f64], batch: usize) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let step_seconds =
            Latency { p50: percentile(&sorted, 50), p90: percentile(&sorted, 90), p99: percentile(&sorted, 99) };
        let tokens_per_second = (batch * seconds.len()) as f64 / seconds.iter().sum::<f64>();
        Self { steps: seconds.len(), tokens_per_second, step_seconds, bound: None }
    }
}

/// The least of some sorted values that `percent` of a hundred of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// The middle one of at least one value; of an even number, the mean of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([50, 90, 99].map(|percent| percentile(&hundred, percent)), [50.0, 90.0, 99.0]);
        assert_eq!([50, 90, 99].map(|percent| percentile(&[1.0, 2.0, 3.0], percent)), [2.0, 3.0, 3.0]);
        assert_eq!(percentile(&[7.0], 50), 7.0);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn decoding_counts_the_tokens_of_all_rows() {
        let decode = Decode::of(&[0.1, 0.3, 0.2, 0.4], 2);
        assert_eq!((decode.steps, decode.tokens_per_second), (4, 8.0));
        assert_eq!(decode.step_seconds, Latency { p50: 0.2, p90: 0.4, p99: 0.4 });
    }
}
