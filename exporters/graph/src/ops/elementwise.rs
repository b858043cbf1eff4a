//! Operators of one operand, element by element.

use crate::{DType, TensorType, Value};
use densessm_proto::onnx::tensor_proto::DataType;

fn float(types: &[TensorType]) -> Result<TensorType, String> {
    if !types[0].dtype.is_float() {
        return Err(format!("expected floats, got {}", types[0]));
    }
    Ok(types[0].clone())
}

macro_rules! unary {
    ($($(#[$doc:meta])+ $method:ident => $op:literal;)+) => {
        impl<'g> Value<'g> {
            $(
                $(#[$doc])+
                #[track_caller]
                pub fn $method(self) -> Value<'g> {
                    self.apply($op, &[], vec![], float)
                }
            )+
        }
    };
}

unary! {
    /// Cosine of an angle in radians.
    cos => "Cos";
    /// `e^x`.
    exp => "Exp";
    /// Natural logarithm.
    log => "Log";
    /// `max(x, 0)`.
    relu => "Relu";
    /// `1 / (1 + e^-x)`.
    sigmoid => "Sigmoid";
    /// Sine of an angle in radians.
    sin => "Sin";
    /// Hyperbolic sine.
    sinh => "Sinh";
    /// Square root.
    sqrt => "Sqrt";
}

impl<'g> Value<'g> {
    /// Absolute value.
    #[track_caller]
    pub fn abs(self) -> Value<'g> {
        self.apply("Abs", &[], vec![], |types| match types[0].dtype {
            DType::Bool => Err(format!("expected numbers, got {}", types[0])),
            _ => Ok(types[0].clone()),
        })
    }

    /// `x · sigmoid(x)`.
    #[track_caller]
    pub fn silu(self) -> Value<'g> {
        self * self.sigmoid()
    }

    /// `max(x, 0) + log(1 + e^-|x|)`: never overflows, unlike `log(1 + e^x)`.
    #[track_caller]
    pub fn softplus(self) -> Value<'g> {
        self.relu() + ((-self.abs()).exp() + 1.0).log()
    }

    /// The same numbers in another element type; itself if it has that type already.
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Value<'g> {
        if self.dtype() == dtype {
            return self;
        }
        self.apply("Cast", &[], vec![("to", i64::from(DataType::from(dtype) as i32).into())], |types| {
            Ok(types[0].with_dtype(dtype))
        })
    }

    /// The same value under a name of its own.
    #[track_caller]
    pub(crate) fn identity(self) -> Value<'g> {
        self.apply("Identity", &[], vec![], |types| Ok(types[0].clone()))
    }
}
