//! The peak rates of a machine, and the bounds on a model's speed that follow from them.

use super::{Bench, bandwidth};
use crate::{inspect::TokenCost, runtime};
use densessm_proto::{DType, GraphKind, LogitsMode, Manifest};
use densessm_session::{Choice, Error, Product, RuntimeInfo};
use serde::Serialize;
use std::time::Duration;

/// The time for which each product is repeated.
const BUDGET: Duration = Duration::from_millis(500);
/// The product whose rate is the processor's peak: as many rows as a short prompt has, and a layer's weight.
const GEMM: Product = Product::new(128, 1024, 4096);
/// The same for a GPU, where a smaller product would take little more time than its launch.
const GPU_GEMM: Product = Product::new(8192, 4096, 8192);
/// One row with a weight larger than any GPU's cache, 1 GiB in fp32.
const GPU_READ: Product = Product::new(1, 16_384, 16_384);

/// The peak rates of a device with the run's number of threads: the better of two measurements, before and after the
/// run.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Roofline {
    /// Bytes read per second.
    pub read_bytes_per_second: f64,
    /// How the reads were made.
    pub read_method: ReadMethod,
    /// Floating-point operations per second of the runtime's own matrix product.
    pub gemm_flops_per_second: f64,
    /// Rows, inner size and columns of that product.
    pub gemm: [usize; 3],
    /// The element type of that product: the bundle's on a GPU, fp32 on the CPU.
    pub gemm_dtype: DType,
}

/// How the read bandwidth was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReadMethod {
    /// Sums over a large buffer, on the processor.
    Sums,
    /// A kernel that reads a large buffer, on a GPU.
    Kernel,
    /// The runtime's product of one row with a large weight, where it has no kernel that only reads.
    Product,
}

/// The upper bound that the roofline gives for a speed, and the fraction of it that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Upper bound of tokens per second, summed over the rows.
    pub tokens_per_second: f64,
    /// The limiting resource.
    pub limit: Limit,
    /// The measured speed divided by the bound: above 1 where weights stay in a cache from one step to the next.
    pub fraction: f64,
}

/// The resource that limits a speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// Reading weights and states.
    ReadBandwidth,
    /// The rate of matrix products.
    Gemm,
}

/// The least work that a number of tokens needs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    tokens: f64,
    bytes: f64,
    flops: f64,
}

impl Roofline {
    /// Measures the peak rates of a device with a runtime of this build, on a GPU with products in this element type.
    ///
    /// # Errors
    /// When the build does not contain the runtime, it fails, or there is no memory for what is read.
    pub fn measure(on: &RuntimeInfo, threads: Option<usize>, dtype: DType) -> Result<Self, Error> {
        let runtime = runtime::registry().choose(Choice::of(on), on.device)?;
        let seconds =
            |product: Product| runtime.time_product(product, on.device, threads, BUDGET).map(|time| time.as_secs_f64());
        let (gemm, read_method, read_bytes_per_second) = if on.device.is_cpu() {
            let threads = threads.unwrap_or_else(|| runtime.default_threads());
            (GEMM, ReadMethod::Sums, bandwidth::read(threads)?)
        } else {
            let gemm = GPU_GEMM.with_dtype(dtype);
            match runtime.read_bandwidth(on.device, BUDGET)? {
                Some(rate) => (gemm, ReadMethod::Kernel, rate),
                None => (gemm, ReadMethod::Product, GPU_READ.weight_bytes() as f64 / seconds(GPU_READ)?),
            }
        };
        let gemm_flops_per_second = gemm.flops() as f64 / seconds(gemm)?;
        Ok(Self {
            read_bytes_per_second,
            read_method,
            gemm_flops_per_second,
            gemm: [gemm.rows, gemm.inner, gemm.columns],
            gemm_dtype: gemm.dtype,
        })
    }

    /// Returns the better of two measurements for each rate.
    pub(super) fn or(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            gemm_flops_per_second: self.gemm_flops_per_second.max(other.gemm_flops_per_second),
            ..self
        })
    }

    fn bound(&self, work: Work, measured: f64) -> Bound {
        let (read, multiplied) = (work.bytes / self.read_bytes_per_second, work.flops / self.gemm_flops_per_second);
        let limit = if read > multiplied { Limit::ReadBandwidth } else { Limit::Gemm };
        let tokens_per_second = work.tokens / read.max(multiplied);
        Bound { tokens_per_second, limit, fraction: measured / tokens_per_second }
    }
}

/// The cost of a token with the weights as they are in memory: runtimes on the CPU widen those in half precision.
fn in_memory(cost: TokenCost, read: ReadMethod) -> TokenCost {
    let widened = read == ReadMethod::Sums;
    TokenCost { weight_bytes: if widened { cost.widened_weight_bytes } else { cost.weight_bytes }, ..cost }
}

/// The work of a step of `batch` rows: it reads every weight and the states, and writes the states.
fn step(cost: &TokenCost, batch: usize) -> Work {
    Work {
        tokens: batch as f64,
        bytes: (cost.weight_bytes + batch as u64 * cost.state_bytes) as f64,
        flops: (batch as u64 * (cost.projection_flops + cost.recurrence_flops)) as f64,
    }
}

/// The work of a prompt in `calls` calls, each of which reads every weight; `scored` tokens of each row pass through the
/// output head.
fn prompt(cost: &TokenCost, tokens: usize, batch: usize, calls: usize, scored: usize) -> Work {
    let each = cost.projection_flops - cost.head_flops + cost.recurrence_flops;
    let row = tokens as u64 * each + scored as u64 * cost.head_flops;
    Work {
        tokens: (batch * tokens) as f64,
        bytes: (calls as u64 * (cost.weight_bytes + batch as u64 * cost.state_bytes)) as f64,
        flops: (batch as u64 * row) as f64,
    }
}

impl Bench {
    /// Adds the roofline's bound to each measurement.
    pub(super) fn bind(&mut self, roofline: Roofline, manifest: &Manifest) {
        let cost = in_memory(self.token, roofline.read_method);
        for run in &mut self.runs {
            let parallel = manifest.graph(GraphKind::Parallel).is_some();
            let calls = super::measure::pieces(run.prompt_tokens, parallel).count();
            let scored = if parallel && manifest.logits == LogitsMode::Last { calls } else { run.prompt_tokens };
            let work = prompt(&cost, run.prompt_tokens, run.batch, calls, scored);
            run.prefill.bound = Some(roofline.bound(work, run.prefill.tokens_per_second));
            run.decode.bound = Some(roofline.bound(step(&cost, run.batch), run.decode.tokens_per_second));
        }
        for at in &mut self.positions {
            at.decode.bound = Some(roofline.bound(step(&cost, at.batch), at.decode.tokens_per_second));
        }
        self.roofline = Some(roofline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: TokenCost = TokenCost {
        dtype: DType::F16,
        widened_weight_bytes: 4_000,
        projection_flops: 1_000,
        head_flops: 200,
        recurrence_flops: 100,
        weight_bytes: 2_000,
        state_bytes: 40,
    };
    const ROOFLINE: Roofline = Roofline {
        read_bytes_per_second: 10_000.0,
        read_method: ReadMethod::Kernel,
        gemm_flops_per_second: 20_000.0,
        gemm: [1, 1, 1],
        gemm_dtype: DType::F16,
    };

    #[test]
    fn half_precision_weights_are_read_as_fp32_on_the_cpu() {
        assert_eq!(in_memory(COST, ReadMethod::Sums).weight_bytes, 4_000);
        assert_eq!(in_memory(COST, ReadMethod::Kernel), COST);
    }

    #[test]
    fn a_single_row_is_bound_by_reading_and_many_rows_by_multiplying() {
        let one = ROOFLINE.bound(step(&COST, 1), 2.0);
        assert_eq!((one.limit, one.tokens_per_second), (Limit::ReadBandwidth, 10_000.0 / 2_040.0));
        assert_eq!(one.fraction, 2.0 / one.tokens_per_second);
        let many = ROOFLINE.bound(step(&COST, 100), 9.0);
        assert_eq!((many.limit, many.tokens_per_second), (Limit::Gemm, 20_000.0 / 1_100.0));
    }

    #[test]
    fn a_prompt_goes_through_the_output_head_once_a_call() {
        let work = prompt(&COST, 600, 2, 2, 2);
        assert_eq!(work, Work { tokens: 1_200.0, bytes: 2.0 * 2_080.0, flops: 2.0 * (600.0 * 900.0 + 2.0 * 200.0) });
    }
}
