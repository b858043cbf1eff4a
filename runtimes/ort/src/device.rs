//! Execution providers and memory of a device.

use crate::{
    error::message,
    library::{self, Loaded},
};
use densessm_session::{Device, Provider, RuntimeId, Unusable, UnusableReason};
use ort::{
    ep::{CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
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
        Provider::TensorRt => {
            vec![TensorRT::default().with_device_id(index).build().error_on_failure(), cuda(index)]
        }
        _ => Vec::new(),
    }
}

/// Returns the provider with which the peak rate of a device is measured: on every NVIDIA GPU CUDA, whose products
/// TensorRT's are compared with.
pub(crate) fn product_providers(device: Device) -> Vec<ExecutionProviderDispatch> {
    if device.is_cpu() { Vec::new() } else { vec![cuda(index(device))] }
}

/// CUDA, with products in fp32: by default it rounds their factors to the ten bits of TF32, which costs a model of
/// several layers three of its seven digits.
fn cuda(index: i32) -> ExecutionProviderDispatch {
    CUDA::default().with_device_id(index).with_tf32(false).build().error_on_failure()
}

/// Returns the memory of a device.
pub(crate) fn memory(device: Device) -> ort::Result<MemoryInfo<'static>> {
    let allocation = if device.is_cpu() { AllocationDevice::CPU } else { AllocationDevice::CUDA };
    MemoryInfo::new(allocation, index(device), AllocatorType::Device, MemoryType::Default)
}

/// Returns an allocator of a device's memory that lives as long as the session.
pub(crate) fn allocator(session: &Session, device: Device) -> ort::Result<Allocator> {
    if device.is_cpu() { Ok(Allocator::default()) } else { Allocator::new(session, memory(device)?) }
}

/// The index as ONNX Runtime takes it; a [`Device`] has none beyond its range.
fn index(device: Device) -> i32 {
    i32::try_from(device.index()).unwrap_or(i32::MAX)
}
