//! The interface of encoders, which convert numbers to the bytes of initializers, and the one for floating-point types.

use crate::DType;
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Converts a weight's prepared numbers, in row-major order, to the bytes of its initializers.
pub(crate) trait Encoder {
    /// Takes the next numbers and returns the next bytes of the first initializer.
    fn push(&mut self, values: &[f32]) -> Result<Vec<u8>, String>;

    /// Returns the bytes of the other initializers.
    fn finish(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

/// Stores numbers in a floating-point type.
pub(crate) struct Float {
    dtype: DType,
    /// Numbers stored so far.
    done: usize,
}

impl Float {
    pub(crate) fn new(dtype: DType) -> Self {
        Self { dtype, done: 0 }
    }
}

impl Encoder for Float {
    fn push(&mut self, values: &[f32]) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; values.len() * self.dtype.size()];
        match self.dtype {
            DType::F64 => fill(&mut bytes, values, |value| f64::from(*value).to_le_bytes()),
            DType::F32 => fill(&mut bytes, values, |value| value.to_le_bytes()),
            DType::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                self.check(values, &halves, |half| half.is_infinite())?;
                fill(&mut bytes, &halves, |half| half.to_le_bytes());
            }
            DType::BF16 => {
                let mut halves = vec![bf16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                self.check(values, &halves, |half| half.is_infinite())?;
                fill(&mut bytes, &halves, |half| half.to_le_bytes());
            }
            dtype => return Err(format!("expected a floating-point type to store it in, got {dtype}")),
        }
        self.done += values.len();
        Ok(bytes)
    }
}

impl Float {
    fn check<T>(&self, values: &[f32], stored: &[T], infinite: impl Fn(&T) -> bool) -> Result<(), String> {
        let overflow = values.iter().zip(stored).position(|(value, stored)| value.is_finite() && infinite(stored));
        overflow.map_or(Ok(()), |at| {
            let (index, dtype) = (self.done + at, self.dtype);
            Err(format!("element {index} is {}, which is too large for {dtype}; store it in fp32 or bf16", values[at]))
        })
    }
}

/// Writes values as chunks of bytes.
fn fill<T, const N: usize>(bytes: &mut [u8], values: &[T], chunk: impl Fn(&T) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = chunk(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_nearest_even() {
        let step = 2_f32.powi(-10);
        for (value, expected) in [(1.0 + step / 2.0, 0x3c00), (1.0 + 1.5 * step, 0x3c02), (65519.0, 0x7bff)] {
            let bytes = Float::new(DType::F16).push(&[value]).unwrap();
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{value}");
        }
        for (value, expected) in [(1.0 + 2_f32.powi(-8), 0x3f80), (1.0 + 3.0 * 2_f32.powi(-8), 0x3f82)] {
            let bytes = Float::new(DType::BF16).push(&[value]).unwrap();
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{value}");
        }
    }

    #[test]
    fn a_finite_number_never_becomes_infinite() {
        for (dtype, value) in [(DType::F16, 65520.0), (DType::F16, -1e9), (DType::BF16, f32::MAX)] {
            let mut encoder = Float::new(dtype);
            encoder.push(&[0.0; 3]).unwrap();
            let problem = encoder.push(&[1.0, value]).unwrap_err();
            assert!(problem.starts_with("element 4 is") && problem.contains(dtype.name()), "{problem}");
        }
        let infinity = Float::new(DType::F16).push(&[f32::INFINITY]).unwrap();
        assert_eq!(infinity, [0x00, 0x7c]);
    }
}
