//! Execution providers and memory of a device.

use crate::{
    error::message,
    library::{self, Loaded},
};
use densessm_cuda::Stream;
use densessm_session::{Device, Provider, RuntimeId, Unusable, UnusableReason};
use ort::{
    ep::{CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT},
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{RunOptions, Session},
};

/// Returns ONNX Runtime if this build of it has the device's provider and the device responds.
pub(crate) fn usable(device: Device) -> Result<&'static Loaded, Unusable> {
    let unusable = |reason| Unusable::new(RuntimeId::Ort, device, reason);
    let loaded = library::loaded().map_err(unusable)?;
    let present = match device.provider() {
        Provider::Cpu => return Ok(loaded),
        Provider::Cuda => CUDA::is_available(),
        Provider::TensorRt => TensorRT::is_available(),
        _ => return Err(unusable(UnusableReason::UnknownProvider)),
    };
    if !present.unwrap_or(false) {
        let (library, version) = (loaded.path.clone(), loaded.version);
        return Err(unusable(UnusableReason::NoProvider { library, version }));
    }
    // The provider itself, and not the one behind it that runs what it rejects.
    let first = providers(device).into_iter().take(1);
    let registered = Session::builder(&loaded.environment)
        .and_then(|builder| Ok(builder.with_execution_providers(first.collect::<Vec<_>>())?));
    match registered {
        Ok(_) => Ok(loaded),
        Err(error) => Err(unusable(UnusableReason::DeviceFailed { problem: message(&error) })),
    }
}

/// Returns the execution providers of a device, the preferred one first. None of them is skipped silently.
pub(crate) fn providers(device: Device) -> Vec<ExecutionProviderDispatch> {
    let index = index(device);
    match device.provider() {
        Provider::Cuda => vec![cuda(index)],
        // What TensorRT rejects runs on the same GPU through CUDA.
        Provider::TensorRt => tensorrt_providers(device, TensorRT::default().with_device_id(index)),
        _ => Vec::new(),
    }
}

/// Returns TensorRT with its options as the provider of a session, and behind it CUDA.
pub(crate) fn tensorrt_providers(device: Device, tensorrt: TensorRT) -> Vec<ExecutionProviderDispatch> {
    vec![tensorrt.build().error_on_failure(), cuda(index(device))]
}

/// Returns the provider with which the peak rate of a device is measured: on every NVIDIA GPU CUDA, whose products
/// TensorRT's are compared with.
pub(crate) fn product_providers(device: Device) -> Vec<ExecutionProviderDispatch> {
    if device.is_cpu() { Vec::new() } else { vec![cuda(index(device))] }
}

fn cuda(index: i32) -> ExecutionProviderDispatch {
    cuda_provider(index).build().error_on_failure()
}

/// CUDA, with products in fp32: by default it rounds their factors to the ten bits of TF32, which costs a model of
/// several layers three of its seven digits.
fn cuda_provider(index: i32) -> CUDA {
    CUDA::default().with_device_id(index).with_tf32(false)
}

/// Returns CUDA as the provider of a session that submits its work to a stream, and whose runs the caller may capture
/// into CUDA graphs if `capturable`.
///
/// ONNX Runtime's own captures are switched off by the option of each run; see [`uncaptured`]. What remains of the option
/// here is that it rejects a graph of which it must run a part on the CPU, and that it submits no functions of the host,
/// which a replay would call again.
///
/// # Safety
/// The stream must be one of this GPU, and outlive the session.
pub(crate) unsafe fn cuda_on_stream(
    device: Device,
    stream: &Stream,
    capturable: bool,
) -> Vec<ExecutionProviderDispatch> {
    let cuda = cuda_provider(index(device)).with_cuda_graph(capturable);
    // SAFETY: the caller's obligation.
    let cuda = unsafe { cuda.with_compute_stream(stream.handle().cast()) };
    vec![cuda.build().error_on_failure()]
}

/// Returns the options of a run that ONNX Runtime does not capture into a CUDA graph of its own.
pub(crate) fn uncaptured() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set("gpu_graph_id", "-1")?;
    Ok(options)
}

/// Returns the memory of a device.
pub(crate) fn memory(device: Device) -> ort::Result<MemoryInfo<'static>> {
    let allocation = if device.is_cpu() { AllocationDevice::CPU } else { AllocationDevice::CUDA };
    MemoryInfo::new(allocation, index(device), AllocatorType::Device, MemoryType::Default)
}

/// The index as ONNX Runtime takes it; a [`Device`] has none beyond its range.
pub(crate) fn index(device: Device) -> i32 {
    i32::try_from(device.index()).unwrap_or(i32::MAX)
}
