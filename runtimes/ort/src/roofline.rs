//! The peak rate of ONNX Runtime on a device: a single matrix product, timed as a session of its own.

use crate::{
    device::{memory, product_providers, usable},
    error::failed,
    gpu,
};
use densessm_proto::DType;
use densessm_session::{Device, Error, Product, check_threads, min_time};
use ort::{
    memory::Allocator,
    session::{Session, builder::GraphOptimizationLevel},
    value::{DynTensor, TensorElementType},
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
        binding.bind_input(Product::INPUT, &input(product)?)?;
        binding.bind_output_to_device(Product::OUTPUT, &memory(device)?)?;
        min_time(budget, || session.run_binding(&binding).map(drop))
    };
    time().map_err(failed("timing a matrix product"))
}

/// Makes the input in the product's element type.
fn input(product: Product) -> ort::Result<DynTensor> {
    let element = match product.dtype {
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        _ => TensorElementType::Float32,
    };
    let bytes = product.input_bytes();
    let mut tensor = DynTensor::new(&Allocator::default(), element, [product.rows, product.inner])?;
    // SAFETY: the tensor was just allocated on the host for `rows * inner` elements of this type, of which there are as
    // many in `bytes`, and nothing else refers to it.
    unsafe { tensor.data_ptr_mut().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Ok(tensor)
}

/// Measures the bandwidth of a GPU's memory; see
/// [`Runtime::read_bandwidth`](densessm_session::Runtime::read_bandwidth). Without NVRTC, which compiles the kernel that
/// reads, there is none.
pub(crate) fn read_bandwidth(device: Device, budget: Duration) -> Result<Option<f64>, Error> {
    usable(device)?;
    if device.is_cpu() {
        return Ok(None);
    }
    match densessm_cuda::read_bandwidth(device.index() as usize, budget) {
        Ok(rate) => Ok(Some(rate)),
        Err(densessm_cuda::Error::MissingLibrary { .. }) => Ok(None),
        Err(error) => Err(gpu::failed("measuring the read bandwidth")(error)),
    }
}
