//! Conversion between host tensors and tract's.

use densessm_session::{Error, HostTensor, Values};
use tract_onnx::prelude::*;

/// Converts an error of tract: what it was doing, then tract's message and its causes on one line.
pub(crate) fn runtime(what: impl Into<String>) -> impl FnOnce(TractError) -> Error {
    let what = what.into();
    move |error| Error::Runtime { what, problem: format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// Copies numbers into a tensor.
pub(crate) fn place<T: Datum + Copy>(shape: &[usize], numbers: &[T]) -> Result<TValue, Error> {
    Tensor::from_shape(shape, numbers).map(TValue::from).map_err(runtime("placing a tensor"))
}

/// Copies a host tensor into one of tract's.
pub(crate) fn from_host(tensor: &HostTensor) -> Result<TValue, Error> {
    match &tensor.values {
        Values::Float32(values) => place(&tensor.shape, values),
        Values::Int64(values) => place(&tensor.shape, values),
        Values::Int32(values) => place(&tensor.shape, values),
    }
}

/// Returns the numbers of a tensor of floats.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32], Error> {
    tensor.try_as_plain_ram().and_then(|view| view.as_slice::<f32>()).map_err(runtime("reading a tensor"))
}

/// Copies a tensor to the host. Integers that tract keeps in its symbolic type become int64.
pub(crate) fn to_host(tensor: &Tensor) -> Result<HostTensor, Error> {
    let read = || {
        Ok(match tensor.datum_type() {
            DatumType::F32 => Values::Float32(tensor.try_as_plain_ram()?.as_slice()?.to_vec()),
            DatumType::I32 => Values::Int32(tensor.try_as_plain_ram()?.as_slice()?.to_vec()),
            _ => Values::Int64(tensor.cast_to::<i64>()?.try_as_plain_ram()?.as_slice()?.to_vec()),
        })
    };
    Ok(HostTensor { shape: tensor.shape().to_vec(), values: read().map_err(runtime("reading a tensor"))? })
}
