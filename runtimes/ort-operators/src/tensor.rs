//! The tensors of a call, on any device.

use densessm_kernels::Shape;
use ort::{Error, Result, sys};
use std::{ffi::c_void, ptr};

/// The largest number of axes of an operand.
const MAX_AXES: usize = 4;

/// An operand: its data are in the memory of the device that the node runs on.
pub(crate) struct Tensor {
    pub(crate) element: sys::ONNXTensorElementDataType,
    pub(crate) shape: Shape,
    pub(crate) data: *mut c_void,
}

/// Converts a status of ONNX Runtime into a result.
///
/// # Safety
/// ONNX Runtime has just returned the status, and nothing else releases it.
pub(crate) unsafe fn checked(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the caller guarantees it.
    unsafe { Error::result_from_status(status) }
}

/// The number of operands of a call.
///
/// # Safety
/// The context is alive.
pub(crate) unsafe fn inputs(context: *mut sys::OrtKernelContext) -> Result<usize> {
    let mut count = 0;
    // SAFETY: the context is alive; a number is written.
    unsafe { checked((ort::api().KernelContext_GetInputCount)(context, &mut count))? };
    Ok(count)
}

/// An operand; none if it was left out.
///
/// # Safety
/// The context is alive. The data live as long as it does.
pub(crate) unsafe fn input(context: *mut sys::OrtKernelContext, index: usize) -> Result<Option<Tensor>> {
    let mut value = ptr::null();
    // SAFETY: the context is alive; a pointer is written.
    unsafe { checked((ort::api().KernelContext_GetInput)(context, index, &mut value))? };
    if value.is_null() {
        return Ok(None);
    }
    let (element, shape) = describe(value)?;
    let mut data = ptr::null_mut();
    // SAFETY: the value is alive as long as the context; a pointer is written.
    unsafe { checked((ort::api().GetTensorMutableData)(value.cast_mut(), &mut data))? };
    Ok(Some(Tensor { element, shape, data }))
}

/// The memory of a result of some shape.
///
/// # Safety
/// The context is alive. The memory lives as long as it does.
pub(crate) unsafe fn output(context: *mut sys::OrtKernelContext, index: usize, shape: Shape) -> Result<*mut c_void> {
    let mut sizes = [0_i64; MAX_AXES];
    let rank = shape.sizes().len();
    for (to, size) in sizes.iter_mut().zip(shape.sizes()) {
        *to = *size as i64;
    }
    let (mut value, mut data) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the context is alive, and the array holds `rank` sizes; pointers are written.
    unsafe {
        let api = ort::api();
        checked((api.KernelContext_GetOutput)(context, index, sizes.as_ptr(), rank, &mut value))?;
        checked((api.GetTensorMutableData)(value, &mut data))?;
    }
    Ok(data)
}

/// Element type and shape of a tensor.
fn describe(value: *const sys::OrtValue) -> Result<(sys::ONNXTensorElementDataType, Shape)> {
    let api = ort::api();
    let mut info = ptr::null_mut();
    // SAFETY: the value is alive; the info is created here and released below.
    unsafe { checked((api.GetTensorTypeAndShape)(value, &mut info))? };
    // SAFETY: the info is alive.
    let described = unsafe { dimensions(info) };
    // SAFETY: it was made above and is released once.
    unsafe { (api.ReleaseTensorTypeAndShapeInfo)(info) };
    let (element, sizes, rank) = described?;
    let sizes = sizes.map(|size| usize::try_from(size).unwrap_or(0));
    Ok((element, sizes.get(..rank).and_then(Shape::new).ok_or_else(|| too_many_axes(rank))?))
}

/// Element type and sizes that a description says; a size that it does not say is negative.
///
/// # Safety
/// The description is alive.
pub(crate) unsafe fn type_and_sizes(
    info: *const sys::OrtTensorTypeAndShapeInfo,
) -> Result<(sys::ONNXTensorElementDataType, Vec<i64>)> {
    // SAFETY: the caller's obligation.
    let (element, sizes, rank) = unsafe { dimensions(info) }?;
    Ok((element, sizes.get(..rank).ok_or_else(|| too_many_axes(rank))?.to_vec()))
}

/// Element type, the first sizes, and how many there are.
///
/// # Safety
/// The description is alive.
unsafe fn dimensions(
    info: *const sys::OrtTensorTypeAndShapeInfo,
) -> Result<(sys::ONNXTensorElementDataType, [i64; MAX_AXES], usize)> {
    let api = ort::api();
    let mut element = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let (mut rank, mut sizes) = (0, [0_i64; MAX_AXES]);
    // SAFETY: the info is alive, as the caller guarantees, and no more sizes are written than fit.
    unsafe {
        checked((api.GetTensorElementType)(info, &mut element))?;
        checked((api.GetDimensionsCount)(info, &mut rank))?;
        checked((api.GetDimensions)(info, sizes.as_mut_ptr(), rank.min(MAX_AXES)))?;
    }
    Ok((element, sizes, rank))
}

fn too_many_axes(rank: usize) -> Error {
    Error::new(format!("expected at most {MAX_AXES} axes, got {rank}"))
}
