//! What tract makes of the processor at best: one matrix product, timed as a plan of its own.

use crate::{
    graph,
    model::executor,
    tensor::{place, runtime},
};
use densessm_session::{Error, Product, min_time};
use std::{path::Path, time::Duration};
use tract_onnx::prelude::*;

/// The time of a product, as [`min_time`] finds it.
///
/// # Errors
/// When the number of threads is 0, or tract fails.
pub fn time_product(product: Product, threads: Option<usize>, budget: Duration) -> Result<Duration, Error> {
    let options = RunOptions { executor: executor(threads)?, ..RunOptions::default() };
    let input = place(&[product.rows, product.inner], &product.input())?;
    let time = || -> TractResult<Duration> {
        let plan = graph::plan(&product.model(), Path::new("."), &options)?;
        min_time(budget, || plan.run(tvec![input.clone()]).map(drop))
    };
    time().map_err(runtime("tract: timing a matrix product"))
}
