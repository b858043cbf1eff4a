//! Operators of one operand, element by element.

use super::first;
use crate::{DType, TensorType, Value};
use densessm_proto::onnx::tensor_proto::DataType;

/// The operand's type, which must be a floating-point one.
fn float(types: &[TensorType], _opset: i64) -> Result<TensorType, String> {
    let tensor = first(types)?;
    if !tensor.dtype.is_float() {
        return Err(format!("expected floats, got {tensor}"));
    }
    Ok(tensor.clone())
}

/// As [`float`], for an operator that ONNX defines for bf16 only from version 22 of its operator set on.
fn float_late_bf16(types: &[TensorType], opset: i64) -> Result<TensorType, String> {
    let tensor = float(types, opset)?;
    if tensor.dtype == DType::BF16 && opset < 22 {
        return Err(format!("{tensor} needs version 22 of the operator set, got {opset}; cast it to fp32"));
    }
    Ok(tensor)
}

macro_rules! unary {
    ($infer:ident => $($(#[$doc:meta])+ $method:ident => $op:literal;)+) => {
        impl<'g> Value<'g> {
            $(
                $(#[$doc])+
                #[track_caller]
                pub fn $method(self) -> Value<'g> {
                    self.apply($op, &[], vec![], |types| $infer(types, self.graph().opset()))
                }
            )+
        }
    };
}

unary! { float =>
    /// Returns `e^x`.
    exp => "Exp";
    /// Returns the natural logarithm.
    log => "Log";
    /// Returns `max(x, 0)`.
    relu => "Relu";
    /// Returns `1 / (1 + e^-x)`.
    sigmoid => "Sigmoid";
    /// Returns the square root.
    sqrt => "Sqrt";
}

unary! { float_late_bf16 =>
    /// Returns the cosine of an angle in radians. ONNX defines it for bf16 from version 22 of its operator set on.
    cos => "Cos";
    /// Returns the sine of an angle in radians. ONNX defines it for bf16 from version 22 of its operator set on.
    sin => "Sin";
    /// Returns the hyperbolic sine. ONNX defines it for bf16 from version 22 of its operator set on.
    tanh => "Tanh";
}

impl<'g> Value<'g> {
    /// Returns the absolute value.
    #[track_caller]
    pub fn abs(self) -> Value<'g> {
        self.apply("Abs", &[], vec![], |types| match first(types)?.dtype {
            DType::Bool => Err(format!("expected numbers, got {}", first(types)?)),
            _ => Ok(first(types)?.clone()),
        })
    }

    /// Returns `x · sigmoid(x)`.
    #[track_caller]
    pub fn silu(self) -> Value<'g> {
        self * self.sigmoid()
    }

    /// Returns `max(x, 0) + log(1 + e^-|x|)`, which equals `log(1 + e^x)` and never overflows.
    #[track_caller]
    pub fn softplus(self) -> Value<'g> {
        self.relu() + ((-self.abs()).exp() + 1.0).log()
    }

    /// Returns the same numbers in another element type, or the value itself if it has that type already.
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Value<'g> {
        if self.dtype() == dtype {
            return self;
        }
        self.apply("Cast", &[], vec![("to", i64::from(DataType::from(dtype) as i32).into())], |types| {
            Ok(first(types)?.with_dtype(dtype))
        })
    }
}
