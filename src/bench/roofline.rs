//! What the machine can do at best, and what that means for a model.

use super::{Bench, bandwidth};
use crate::{
    inspect::TokenCost,
    runtime::{self, Choice},
};
use densessm_proto::{GraphKind, LogitsMode, Manifest};
use densessm_session::{Device, Error, Product, RuntimeInfo};
use serde::Serialize;

/// The product whose rate is the ceiling on the processor: a prompt's rows, a layer's weight.
const GEMM: Product = Product { rows: 128, inner: 1024, columns: 4096 };
/// On a card, where that would be over before it was launched.
const CARD_GEMM: Product = Product { rows: 4096, inner: 4096, columns: 4096 };
/// One row against a weight that no cache of a card holds, 512 MiB.
const CARD_READ: Product = Product { rows: 1, inner: 8_192, columns: 16_384 };

/// What the device can do at best with the threads of the run: the better of two measurements, before it and after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Roofline {
    /// Bytes read per second: the processor's sums over a large buffer, or a card's product with one row.
    pub read_bytes_per_second: f64,
    /// Floating-point operations per second of the runtime's own fp32 matrix product.
    pub gemm_flops_per_second: f64,
    /// Rows, inner size and columns of that product.
    pub gemm: [usize; 3],
}

/// What the roofline allows, beside what was reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Tokens of all rows per second at best.
    pub tokens_per_second: f64,
    /// What sets it.
    pub limit: Limit,
    /// Measured over allowed: above 1 where weights stay in a cache from one step to the next.
    pub fraction: f64,
}

/// What sets a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading weights and states.
    ReadBandwidth,
    /// The rate of matrix products.
    Gemm,
}

/// What some tokens need at least.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    tokens: f64,
    bytes: f64,
    flops: f64,
}

impl Roofline {
    /// Measures it with a runtime on a device.
    ///
    /// # Errors
    /// When the runtime fails, or there is no memory for what is read.
    pub fn measure(on: &RuntimeInfo, threads: Option<usize>) -> Result<Self, Error> {
        let choice = Choice::of(on);
        let seconds = |product: Product| {
            runtime::time_product(product, choice, on.device, threads).map(|time| time.as_secs_f64())
        };
        let (gemm, read_bytes_per_second) = match on.device {
            Device::Cpu => (GEMM, bandwidth::read(threads.unwrap_or_else(|| runtime::threads(choice)))?),
            Device::Cuda | Device::TensorRt => (CARD_GEMM, CARD_READ.weight_bytes() as f64 / seconds(CARD_READ)?),
        };
        let gemm_flops_per_second = gemm.flops() as f64 / seconds(gemm)?;
        Ok(Self { read_bytes_per_second, gemm_flops_per_second, gemm: [gemm.rows, gemm.inner, gemm.columns] })
    }

    /// The better of two measurements in each: the machine can do what it once did.
    pub(super) fn or(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
            gemm_flops_per_second: self.gemm_flops_per_second.max(other.gemm_flops_per_second),
            gemm: self.gemm,
        })
    }

    fn bound(&self, work: Work, measured: f64) -> Bound {
        let (read, multiplied) = (work.bytes / self.read_bytes_per_second, work.flops / self.gemm_flops_per_second);
        let limit = if read > multiplied { Limit::ReadBandwidth } else { Limit::Gemm };
        let tokens_per_second = work.tokens / read.max(multiplied);
        Bound { tokens_per_second, limit, fraction: measured / tokens_per_second }
    }
}

/// A step of `batch` rows: every weight and the states are read, the states are written.
fn step(cost: &TokenCost, batch: usize) -> Work {
    Work {
        tokens: batch as f64,
        bytes: (cost.weight_bytes + batch as u64 * cost.state_bytes) as f64,
        flops: (batch as u64 * (cost.projection_flops + cost.recurrence_flops)) as f64,
    }
}

/// A prompt in `calls` calls, each of which reads every weight; `scored` tokens of each row go through the output head.
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
    /// Puts the roofline's bound beside each figure.
    pub(super) fn bind(&mut self, roofline: Roofline, manifest: &Manifest) {
        let cost = self.token;
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
        projection_flops: 1_000,
        head_flops: 200,
        recurrence_flops: 100,
        weight_bytes: 2_000,
        state_bytes: 40,
    };
    const ROOFLINE: Roofline =
        Roofline { read_bytes_per_second: 10_000.0, gemm_flops_per_second: 20_000.0, gemm: [1, 1, 1] };

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
