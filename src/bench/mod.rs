//! The speed of a model, and the upper bound that the machine sets for it.
//!
//! The one design decision: each figure is reported with a bound that was measured in the same run on the same device
//! with the same number of threads, and that follows from the least work a token needs: bytes to read and operations to
//! compute.

mod bandwidth;
mod machine;
mod measure;
mod render;
mod roofline;

pub use machine::Machine;
pub use measure::measure;
pub use roofline::{Bound, Limit, ReadMethod, Roofline};

use crate::{GraphPlacement, inspect::TokenCost};
use serde::Serialize;
use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BenchPlan {
    /// Prompt lengths in tokens, each at least 1.
    pub prompt_tokens: Vec<usize>,
    /// Number of tokens to decode after each prompt, at least 1.
    pub new_tokens: usize,
    /// Batch sizes in sequences, each at least 1.
    pub batches: Vec<usize>,
    /// Positions to decode at without consuming as many tokens first: a state's size does not depend on them.
    pub positions: Vec<usize>,
    /// Number of threads within one operator; the runtime's default if absent.
    pub threads: Option<usize>,
    /// The date that the report shows; left out if absent.
    pub date: Option<String>,
}

impl Default for BenchPlan {
    /// Prompts of 128 and 512 tokens, 32 new tokens, one sequence, and positions from 10 to 100,000.
    fn default() -> Self {
        Self {
            prompt_tokens: vec![128, 512],
            new_tokens: 32,
            batches: vec![1],
            positions: vec![10, 1_000, 10_000, 100_000],
            threads: None,
            date: None,
        }
    }
}

impl BenchPlan {
    /// Sets the prompt lengths in tokens.
    pub fn with_prompt_tokens(mut self, prompt_tokens: impl Into<Vec<usize>>) -> Self {
        self.prompt_tokens = prompt_tokens.into();
        self
    }

    /// Sets the number of tokens to decode after each prompt.
    pub fn with_new_tokens(mut self, new_tokens: usize) -> Self {
        self.new_tokens = new_tokens;
        self
    }

    /// Sets the batch sizes in sequences.
    pub fn with_batches(mut self, batches: impl Into<Vec<usize>>) -> Self {
        self.batches = batches.into();
        self
    }

    /// Sets the positions to decode at.
    pub fn with_positions(mut self, positions: impl Into<Vec<usize>>) -> Self {
        self.positions = positions.into();
        self
    }

    /// Sets the number of threads within one operator; `None` is the runtime's default.
    pub fn with_threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Sets the date that the report shows.
    pub fn with_date(mut self, date: impl Into<String>) -> Self {
        self.date = Some(date.into());
        self
    }
}

/// The results of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// Version of densessm.
    pub version: &'static str,
    /// The plan's date.
    pub date: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// The runtime: `ort` or `tract`.
    pub runtime: &'static str,
    /// Version of the runtime.
    pub runtime_version: String,
    /// The device, such as `cpu` or `cuda:1`.
    pub device: String,
    /// How the runtime executes the nodes of this project's operators, for each graph; empty if it does not say.
    pub placement: Vec<GraphPlacement>,
    /// Number of threads within one operator.
    pub threads: usize,
    /// The bundle.
    pub bundle: PathBuf,
    /// The model's family and sizes, for people.
    pub model: String,
    /// The cost of a token.
    pub token: TokenCost,
    /// Seconds to load the bundle's graphs.
    pub load_seconds: f64,
    /// The machine's peak rates; absent if they were not measured.
    pub roofline: Option<Roofline>,
    /// The results for each prompt length and batch size.
    pub runs: Vec<Run>,
    /// The results of decoding at the plan's positions.
    pub positions: Vec<AtPosition>,
    /// Peak resident memory of the process in bytes, while the bundle was loaded and run; absent where the system does
    /// not report it.
    pub peak_resident_bytes: Option<u64>,
    /// Whether the whole plan was measured.
    pub complete: bool,
}

/// The results for one prompt length and batch size.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Length of each prompt in tokens.
    pub prompt_tokens: usize,
    /// Batch size in sequences.
    pub batch: usize,
    /// The speed of consuming the prompt.
    pub prefill: Prefill,
    /// The speed of decoding after it.
    pub decode: Decode,
    /// Peak resident memory of the process in bytes during this measurement, or since its start where the system reports
    /// only that.
    pub peak_resident_bytes: Option<u64>,
}

/// The speed of consuming prompts.
#[derive(Clone, Debug, Serialize)]
pub struct Prefill {
    /// Number of measured runs, after one to warm up.
    pub runs: usize,
    /// Median time of a run, in seconds.
    pub seconds: f64,
    /// Tokens per second, summed over the rows.
    pub tokens_per_second: f64,
    /// Median time from initial states to the first token of every row, chosen greedily, in seconds.
    pub time_to_first_token_seconds: f64,
    /// The roofline's bound.
    pub bound: Option<Bound>,
}

/// The speed of decoding.
#[derive(Clone, Debug, Serialize)]
pub struct Decode {
    /// Number of measured steps, after one to warm up.
    pub steps: usize,
    /// Tokens per second, summed over the rows.
    pub tokens_per_second: f64,
    /// Percentiles of the time of a step.
    pub step_seconds: Latency,
    /// The roofline's bound.
    pub bound: Option<Bound>,
}

/// Percentiles of a time, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The 50th percentile.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// The results of decoding at a position.
#[derive(Clone, Debug, Serialize)]
pub struct AtPosition {
    /// Number of tokens that each row counts as consumed.
    pub position: usize,
    /// Batch size in sequences.
    pub batch: usize,
    /// The speed of decoding.
    pub decode: Decode,
}

impl Decode {
    /// Computes the speed from the times of at least one step of `batch` rows, in seconds.
    fn of(seconds: &[f64], batch: usize) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let step_seconds =
            Latency { p50: percentile(&sorted, 50), p90: percentile(&sorted, 90), p99: percentile(&sorted, 99) };
        let tokens_per_second = (batch * seconds.len()) as f64 / seconds.iter().sum::<f64>();
        Self { steps: seconds.len(), tokens_per_second, step_seconds, bound: None }
    }
}

/// Returns the smallest of the sorted values that at least `percent` percent of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// Returns the median of at least one value: of an even number of them, the mean of the middle two.
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
