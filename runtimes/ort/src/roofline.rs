//! What ONNX Runtime makes of a device at best: one matrix product, timed as a session of its own.

use crate::{
    library,
    session::{cuda, failed},
};
use densessm_session::{Device, Error, Product, min_time};
use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};
use prost::Message;
use std::time::Duration;

/// Runs a product again and again for that long, and once at least, and returns the time of the min_time run. Input and output stay on the device.
///
/// # Errors
/// When ONNX Runtime or the device cannot be used, or the device has no room for the product.
pub fn time_product(
    product: Product,
    device: Device,
    threads: Option<usize>,
    budget: Duration,
) -> Result<Duration, Error> {
    let loaded = library::loaded()?;
    let bytes = product.model().encode_to_vec();
    let time = || -> ort::Result<Duration> {
        let mut builder =
            Session::builder(&loaded.environment)?.with_optimization_level(GraphOptimizationLevel::All)?;
        if device != Device::Cpu {
            // TensorRT's card is CUDA's: its ceiling is measured with CUDA's own product.
            builder = builder.with_execution_providers([cuda().error_on_failure()])?;
        }
        if let Some(threads) = threads {
            builder = builder.with_intra_threads(threads)?;
        }
        let mut session = builder.commit_from_memory(&bytes)?;
        let memory = match device {
            Device::Cpu => MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?,
            _ => MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?,
        };
        let mut binding = session.create_binding()?;
        binding.bind_input(Product::INPUT, &Tensor::from_array(([product.rows, product.inner], product.input()))?)?;
        binding.bind_output_to_device(Product::OUTPUT, &memory)?;
        min_time(budget, || session.run_binding(&binding).map(drop))
    };
    time().map_err(failed("timing a matrix product"))
}
