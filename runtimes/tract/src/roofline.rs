//! What tract makes of the processor at best: one matrix product, timed as a plan of its own.

use crate::{
    graph,
    model::executor,
    tensor::{place, runtime},
};
use densessm_session::{Error, Product};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tract_onnx::prelude::*;

/// Runs a product again and again for that long, and once at least, and returns the time of the quickest run.
///
/// # Errors
/// When the number of threads is 0, or tract fails.
pub fn time_product(product: Product, threads: Option<usize>, budget: Duration) -> Result<Duration, Error> {
    let options = RunOptions { executor: executor(threads)?, ..RunOptions::default() };
    let input = place(&[product.rows, product.inner], &product.input())?;
    let time = || -> TractResult<Duration> {
        let plan = graph::plan(&product.model(), Path::new("."), &options)?;
        // The first run allocates.
        plan.run(tvec![input.clone()])?;
        let (begin, mut best) = (Instant::now(), Duration::MAX);
        while best == Duration::MAX || begin.elapsed() < budget {
            let start = Instant::now();
            plan.run(tvec![input.clone()])?;
            best = best.min(start.elapsed());
        }
        Ok(best)
    };
    time().map_err(runtime("tract: timing a matrix product"))
}
