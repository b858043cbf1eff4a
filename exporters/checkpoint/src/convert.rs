//! Converts the bytes of floats of any type.

use densessm_proto::DType;
use half::{bf16, f16};

/// Converts one element, at the beginning of `bytes`. A type that is not a float gives NaN, which is an error wherever
/// elements are read.
pub(crate) fn to_f64(dtype: DType, bytes: &[u8]) -> f64 {
    fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match dtype {
        DType::F32 => f32::from_le_bytes(first(bytes)).into(),
        DType::F16 => f16::from_le_bytes(first(bytes)).into(),
        DType::BF16 => bf16::from_le_bytes(first(bytes)).into(),
        DType::F64 => f64::from_le_bytes(first(bytes)),
        _ => f64::NAN,
    }
}

/// Converts as many elements as `out` has. A type that is not a float gives NaN.
pub(crate) fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::BF16 => each(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::F64 => each(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
        _ => out.fill(f32::NAN),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = number(bytes);
    }
}
