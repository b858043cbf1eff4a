//! Constants: numbers encoded in an element type, and their text.

use crate::{DType, TensorType};
use half::{bf16, f16};

/// A constant of a body: its type, and its elements as little-endian bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Literal {
    pub(crate) tensor: TensorType,
    pub(crate) bytes: Vec<u8>,
}

impl Literal {
    /// Floating-point numbers, each rounded to nearest, ties to even.
    pub(crate) fn floats(tensor: TensorType, values: &[f64]) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(values.len() * tensor.dtype.size());
        values.iter().try_for_each(|&value| push_float(tensor.dtype, value, &mut bytes))?;
        Ok(Self { tensor, bytes })
    }

    /// Integers.
    pub(crate) fn integers(tensor: TensorType, values: &[i64]) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(values.len() * tensor.dtype.size());
        values.iter().try_for_each(|&value| push_integer(tensor.dtype, value, &mut bytes))?;
        Ok(Self { tensor, bytes })
    }

    /// The numbers as text: the first four of a long literal.
    pub(crate) fn text(&self) -> String {
        let size = self.tensor.dtype.size();
        let words: Vec<String> = self.bytes.chunks_exact(size).take(4).map(|bytes| self.element(bytes)).collect();
        let more = if self.bytes.len() / size > 4 { ", …" } else { "" };
        format!("{}{more}", words.join(", "))
    }

    fn element(&self, bytes: &[u8]) -> String {
        match (self.tensor.dtype, bytes) {
            (DType::F64, &[a, b, c, d, e, f, g, h]) => format!("{:?}", f64::from_le_bytes([a, b, c, d, e, f, g, h])),
            (DType::F32, &[a, b, c, d]) => format!("{:?}", f32::from_le_bytes([a, b, c, d])),
            (DType::F16, &[a, b]) => {
                let number = f16::from_le_bytes([a, b]);
                shortest(number.into(), |decimal| f16::from_f32(to_odd(decimal)) == number)
            }
            (DType::BF16, &[a, b]) => {
                let number = bf16::from_le_bytes([a, b]);
                shortest(number.into(), |decimal| bf16::from_f32(to_odd(decimal)) == number)
            }
            (DType::I64, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]).to_string(),
            (DType::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).to_string(),
            (DType::I8, &[a]) => i8::from_le_bytes([a]).to_string(),
            (DType::U8, &[a]) => a.to_string(),
            (DType::Bool, &[a]) => (a != 0).to_string(),
            _ => format!("{bytes:?}"),
        }
    }
}

/// Appends a number in a floating-point type. A finite number that would become infinite, or one other than 0 that
/// would become 0, is an error.
fn push_float(dtype: DType, value: f64, out: &mut Vec<u8>) -> Result<(), String> {
    let stored = match dtype {
        DType::F64 => {
            out.extend(value.to_le_bytes());
            value
        }
        DType::F32 => {
            out.extend((value as f32).to_le_bytes());
            f64::from(value as f32)
        }
        DType::F16 => {
            let number = f16::from_f32(to_odd(value));
            out.extend(number.to_le_bytes());
            number.to_f64()
        }
        DType::BF16 => {
            let number = bf16::from_f32(to_odd(value));
            out.extend(number.to_le_bytes());
            number.to_f64()
        }
        _ => return Err(format!("expected a floating-point type for the number {}, got {dtype}", decimal(value))),
    };
    if value.is_finite() && !stored.is_finite() {
        return Err(format!("the number {} is too large for {dtype}; compute in a wider type", decimal(value)));
    }
    if value != 0.0 && stored == 0.0 {
        return Err(format!("the number {} becomes 0 in {dtype}; compute in a wider type", decimal(value)));
    }
    Ok(())
}

/// Appends a number in an integer type.
fn push_integer(dtype: DType, value: i64, out: &mut Vec<u8>) -> Result<(), String> {
    let too_large = |_| format!("the number {value} does not fit {dtype}");
    match dtype {
        DType::I64 => out.extend(value.to_le_bytes()),
        DType::I32 => out.extend(i32::try_from(value).map_err(too_large)?.to_le_bytes()),
        DType::I8 => out.extend(i8::try_from(value).map_err(too_large)?.to_le_bytes()),
        DType::U8 => out.extend(u8::try_from(value).map_err(too_large)?.to_le_bytes()),
        _ if dtype.is_float() => {
            return Err(format!("expected integers with the number {value}, got {dtype}; write {value}.0"));
        }
        _ => return Err(format!("expected an integer type for the number {value}, got {dtype}")),
    }
    Ok(())
}

/// A number as it is written in source code: an `f32` shows its own digits, not those of its `f64` extension.
pub(crate) fn decimal(value: f64) -> String {
    let single = value as f32;
    if f64::from(single) == value { format!("{single:?}") } else { format!("{value:?}") }
}

/// Rounds to odd: an inexact result takes the neighbour with an odd last bit. Rounding that once more, to a type that
/// is at least two bits shorter, gives the same as rounding the original once.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() || nearest.to_bits() & 1 == 1 {
        nearest
    } else if f64::from(nearest) < value {
        nearest.next_up()
    } else {
        nearest.next_down()
    }
}

/// The decimal with the fewest digits that rounds to a number.
fn shortest(number: f64, rounds_to_it: impl Fn(f64) -> bool) -> String {
    let decimals = (0..9).filter_map(|digits| format!("{number:.digits$e}").parse::<f64>().ok());
    format!("{:?}", decimals.into_iter().find(|&decimal| rounds_to_it(decimal)).unwrap_or(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(dtype: DType, value: f64) -> Result<Literal, String> {
        Literal::floats(TensorType::new(dtype, [0_usize; 0]), &[value])
    }

    #[test]
    fn numbers_round_to_nearest_even_in_every_float_type() {
        let tie = 2_f64.powi(-11); // half a step of fp16 at 1
        let cases = [
            (DType::F16, 1.0 + tie, f16::from_bits(0x3c00).to_f64()),
            (DType::F16, 1.0 + 3.0 * tie, f16::from_bits(0x3c02).to_f64()),
            (DType::F16, 1.0 + tie + 2_f64.powi(-40), f16::from_bits(0x3c01).to_f64()),
            (DType::F16, -1.0 - tie - 2_f64.powi(-40), -f16::from_bits(0x3c01).to_f64()),
            (DType::F16, 65519.0, 65504.0),
            (DType::F16, 6e-8, 2_f64.powi(-24)),
            (DType::BF16, 1.0 + 2_f64.powi(-8), 1.0),
            (DType::BF16, 1.0 + 2_f64.powi(-8) + 2_f64.powi(-40), 1.0 + 2_f64.powi(-7)),
            (DType::BF16, 3e38, 226.0 * 2_f64.powi(120)),
            (DType::F32, 0.1, f64::from(0.1_f32)),
            (DType::F64, 0.1, 0.1),
        ];
        for (dtype, value, expected) in cases {
            let bytes = scalar(dtype, value).unwrap().bytes;
            let stored = match (dtype, &bytes[..]) {
                (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
                (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
                (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
                (_, bytes) => f64::from_le_bytes(bytes.try_into().unwrap()),
            };
            assert!(stored == expected, "{value:e} in {dtype}: expected {expected:e}, got {stored:e}");
        }
    }

    #[test]
    fn numbers_print_with_their_shortest_digits() {
        let cases = [
            (DType::F16, 0.1, "0.1"),
            (DType::F16, 2048.0, "2048.0"),
            (DType::F16, f64::NEG_INFINITY, "-inf"),
            (DType::BF16, 1e-5, "1e-5"),
            (DType::BF16, -0.3, "-0.3"),
            (DType::F32, 1e-6, "1e-6"),
            (DType::F64, 1.0 / 3.0, "0.3333333333333333"),
        ];
        for (dtype, value, expected) in cases {
            assert_eq!(scalar(dtype, value).unwrap().text(), expected, "{value:e} in {dtype}");
        }
    }

    #[test]
    fn a_number_that_a_type_cannot_hold_is_an_error() {
        let cases = [
            (DType::F16, 1e6, "the number 1000000.0 is too large for fp16"),
            (DType::F16, f64::from(1e-8_f32), "the number 1e-8 becomes 0 in fp16"),
            (DType::F32, 1e300, "the number 1e300 is too large for fp32"),
            (DType::I8, 0.5, "expected a floating-point type for the number 0.5, got int8"),
        ];
        for (dtype, value, problem) in cases {
            let error = scalar(dtype, value).unwrap_err();
            assert!(error.starts_with(problem), "expected {problem:?}, got {error:?}");
        }
        for (dtype, value) in [(DType::I8, 128), (DType::U8, -1), (DType::I32, 1 << 31), (DType::Bool, 1)] {
            assert!(Literal::integers(TensorType::new(dtype, [1_usize]), &[value]).is_err(), "{value} in {dtype}");
        }
    }
}
