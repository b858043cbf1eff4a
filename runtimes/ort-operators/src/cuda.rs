//! The kernels for NVIDIA GPUs as operators of ONNX Runtime's CUDA provider.

use crate::{
    operator::{Backend, NodeAttributes, failed},
    tensor::{self, Tensor},
};
use densessm_cuda::Stream;
use densessm_kernels::{
    PreparedKernel, Shape,
    cuda::{CudaKernel, Device, DeviceOperand, Kernel},
};
use densessm_proto::{
    DType,
    operators::{OperandType, Schema},
};
use ort::{
    AsPointer, Result,
    memory::MemoryType,
    operator::{ComputeContext, Kernel as OrtKernel, KernelContext},
    sys,
};
use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::Arc,
};

/// A kernel made for a node.
pub(crate) struct Node {
    kernel: PreparedKernel<dyn Kernel>,
    device: Arc<Device>,
}

impl Backend for CudaKernel {
    type Node = Node;

    const PROVIDER: Option<&'static str> = Some("CUDAExecutionProvider");

    fn schema(&self) -> &'static Schema {
        self.schema()
    }

    fn dtype(&self, dtype: OperandType) -> DType {
        self.dtype(dtype)
    }

    fn create(&self, node: &KernelContext<'_>) -> Result<Node> {
        let problem = |error: &dyn Display| failed(self.schema(), error);
        // The provider's allocator knows which GPU the session runs on.
        let index = node.allocator(MemoryType::Default)?.memory_info().device_id();
        let index = usize::try_from(index).map_err(|error| problem(&error))?;
        let device = Device::open(index).map_err(|error| problem(&error))?;
        let kernel = self.prepare(&NodeAttributes(node), &device).map_err(|error| problem(&error))?;
        // Where the graph does not say the sizes, the first call compiles what it needs.
        if let Ok(units) = kernel.units(&declared(node)?) {
            device.want(units);
        }
        Ok(Node { kernel, device })
    }
}

/// The operands of a node as far as the graph says what they are; an axis of unknown size has size 1.
fn declared(node: &KernelContext<'_>) -> Result<Vec<DeviceOperand>> {
    let (api, info) = (ort::api(), node.ptr());
    let mut count = 0;
    // SAFETY: the node's information is alive; a number is written.
    unsafe { tensor::checked((api.KernelInfo_GetInputCount)(info, &mut count))? };
    let operand = |index: usize| {
        let mut length = 0;
        // SAFETY: as above; without a buffer only the length of the name is written, with its final zero.
        unsafe { tensor::checked((api.KernelInfo_GetInputName)(info, index, ptr::null_mut(), &mut length))? };
        // An operand that was left out has no name, and no type to ask for.
        if length <= 1 {
            return Ok(DeviceOperand::ABSENT);
        }
        let mut described = ptr::null_mut();
        // SAFETY: as above; the description that is written is released below.
        unsafe { tensor::checked((api.KernelInfo_GetInputTypeInfo)(info, index, &mut described))? };
        // SAFETY: the description is alive.
        let operand = unsafe { declared_as(described) };
        // SAFETY: it was made above and is released once.
        unsafe { (api.ReleaseTypeInfo)(described) };
        operand
    };
    (0..count).map(operand).collect()
}

/// An operand of the type that ONNX Runtime describes; absent if that is unknown.
///
/// # Safety
/// The description is alive.
unsafe fn declared_as(described: *const sys::OrtTypeInfo) -> Result<DeviceOperand> {
    let api = ort::api();
    let mut info = ptr::null();
    // SAFETY: the caller's obligation; a pointer is written that lives as long as the description.
    unsafe { tensor::checked((api.CastTypeInfoToTensorInfo)(described, &mut info))? };
    if info.is_null() {
        return Ok(DeviceOperand::ABSENT);
    }
    // SAFETY: as above.
    let (element, sizes) = unsafe { tensor::type_and_sizes(info) }?;
    let sizes: Vec<usize> = sizes.into_iter().map(|size| usize::try_from(size).unwrap_or(1)).collect();
    let known = dtype(element).zip(Shape::new(&sizes));
    Ok(known.map_or(DeviceOperand::ABSENT, |(dtype, shape)| DeviceOperand::new(dtype, shape, 0)))
}

/// The element types that operands have.
fn dtype(element: sys::ONNXTensorElementDataType) -> Option<DType> {
    use sys::ONNXTensorElementDataType as Type;
    match element {
        Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => Some(DType::F32),
        Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => Some(DType::F16),
        Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 => Some(DType::BF16),
        Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 => Some(DType::I32),
        Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 => Some(DType::I64),
        _ => None,
    }
}

impl OrtKernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        // A panic must not reach ONNX Runtime, whose frames cannot be unwound.
        catch_unwind(AssertUnwindSafe(|| self.run(context))).unwrap_or_else(|_| {
            Err(failed(self.kernel.signature().schema(), &"the kernel panicked; please report this"))
        })
    }
}

impl Node {
    fn run(&self, context: &ComputeContext) -> Result<()> {
        let schema = self.kernel.signature().schema();
        let problem = |error: &dyn Display| failed(schema, error);
        let pointer = context.ptr().cast_mut();
        // SAFETY: the context is alive during the call, and so is all that is read of it.
        let count = unsafe { tensor::inputs(pointer) }?;
        let mut operands = Vec::with_capacity(count);
        for index in 0..count {
            // SAFETY: as above.
            let operand = match unsafe { tensor::input(pointer, index) }? {
                None => DeviceOperand::ABSENT,
                Some(Tensor { element, shape, data }) => {
                    let dtype = dtype(element).ok_or_else(|| {
                        problem(&format!("operand {index}: expected fp32, fp16, bf16 or int32, got {element:?}"))
                    })?;
                    DeviceOperand::new(dtype, shape, data.addr() as u64)
                }
            };
            operands.push(operand);
        }
        let call = self.kernel.signature().bind(&operands).map_err(|error| problem(&error))?;
        let mut results = Vec::with_capacity(call.results());
        for index in 0..call.results() {
            let described = call.result_dtype(index).zip(call.result_shape(index));
            let (dtype, shape) = described.ok_or_else(|| problem(&format!("result {index} has no shape")))?;
            // SAFETY: as above.
            let address = unsafe { tensor::output(pointer, index, shape) }?.addr() as u64;
            let range = address..address + (shape.elements() * dtype.size()) as u64;
            // A caller that binds its own memory may bind the same memory twice, but a kernel reads operands after it
            // has begun to write results.
            let overlaps = |operand: &DeviceOperand| {
                let bytes = operand.content().map_or(0, |(dtype, shape)| shape.elements() * dtype.size());
                range.start < operand.address() + bytes as u64 && operand.address() < range.end
            };
            if operands.iter().any(overlaps) {
                let advice = "expected memory of its own, got memory of an operand; bind separate memory";
                return Err(problem(&format!("result {index}: {advice}")));
            }
            results.push(address);
        }
        // SAFETY: ONNX Runtime's stream of this GPU, alive during the call.
        let stream = context.stream()?.map_or(ptr::null_mut(), |stream| stream.as_ptr());
        // SAFETY: as above.
        let stream = unsafe { Stream::borrowed(self.device.context(), stream.cast()) };
        // SAFETY: ONNX Runtime keeps the operands and results in the GPU's memory, of the sizes that their shapes say,
        // until the stream has run what is submitted now; results overlap no operand, as was checked, and are separate
        // allocations.
        unsafe { self.kernel.launch(&call, &results, &stream) }.map_err(|error| problem(&error))
    }
}
