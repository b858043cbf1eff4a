//! The peak rate of ONNX Runtime on a device: a single matrix product, timed as a session of its own.

use crate::{
    device::{memory, product_providers, usable},
    error::failed,
};
use densessm_session::{Device, Error, Product, check_threads, min_time};
use ort::{
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};
use std::time::Duration;

/// Times a product; see [`Runtime::time_product`](densessm_session::Runtime::time_product).
pub(crate) fn time_product(
    product: Product,
    device: Device,
    threads: Option<usize>,
    budget: Duration,
) -> Result<Duration, Error> {
    check_threads(threads)?;
    let loaded = usable(device)?;
    let model = product.model_bytes();
    let time = || -> ort::Result<Duration> {
        let mut builder = Session::builder(&loaded.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_execution_providers(product_providers(device))?;
        if let Some(threads) = threads {
            builder = builder.with_intra_threads(threads)?;
        }
        let mut session = builder.commit_from_memory(&model)?;
        let mut binding = session.create_binding()?;
        binding.bind_input(Product::INPUT, &Tensor::from_array(([product.rows, product.inner], product.input()))?)?;
        binding.bind_output_to_device(Product::OUTPUT, &memory(device)?)?;
        min_time(budget, || session.run_binding(&binding).map(drop))
    };
    time().map_err(failed("timing a matrix product"))
}
