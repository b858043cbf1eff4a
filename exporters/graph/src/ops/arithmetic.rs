//! Operators of two operands: `+ - * /` between values and with numbers, comparisons, selection.

use crate::{DType, TensorType, Value, tensor_type::broadcast};
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

fn same_dtype(types: &[TensorType]) -> Result<DType, String> {
    match types {
        [first, rest @ ..] if rest.iter().all(|other| other.dtype == first.dtype) => Ok(first.dtype),
        _ => {
            let all: Vec<String> = types.iter().map(|tensor| tensor.dtype.to_string()).collect();
            Err(format!("expected equal element types, got {}", all.join(" and ")))
        }
    }
}

fn arithmetic(types: &[TensorType]) -> Result<TensorType, String> {
    let dtype = same_dtype(types)?;
    if dtype == DType::Bool {
        return Err("expected numbers, got truth values".to_owned());
    }
    Ok(TensorType { dtype, shape: broadcast(&types[0].shape, &types[1].shape)? })
}

/// An operator trait between values and with a number on either side.
macro_rules! operator {
    ($trait:ident, $method:ident, $op:literal) => {
        impl<'g> $trait for Value<'g> {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: Value<'g>) -> Value<'g> {
                self.apply($op, &[other], vec![], arithmetic)
            }
        }

        impl<'g> $trait<f32> for Value<'g> {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: f32) -> Value<'g> {
                self.$method(self.graph().root().scalar(other))
            }
        }

        impl<'g> $trait<i64> for Value<'g> {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: i64) -> Value<'g> {
                self.$method(self.graph().root().integer(other))
            }
        }

        impl<'g> $trait<Value<'g>> for f32 {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: Value<'g>) -> Value<'g> {
                other.graph().root().scalar(self).$method(other)
            }
        }
    };
}

operator!(Add, add, "Add");
operator!(Sub, sub, "Sub");
operator!(Mul, mul, "Mul");
operator!(Div, div, "Div");

impl<'g> Neg for Value<'g> {
    type Output = Value<'g>;

    #[track_caller]
    fn neg(self) -> Value<'g> {
        self.apply("Neg", &[], vec![], |types| Ok(types[0].clone()))
    }
}

/// Remainder of an integer division, with the sign of the divisor.
impl<'g> Rem<i64> for Value<'g> {
    type Output = Value<'g>;

    #[track_caller]
    fn rem(self, divisor: i64) -> Value<'g> {
        let divisor = self.graph().root().integer(divisor);
        self.apply("Mod", &[divisor], vec![("fmod", 0_i64.into())], arithmetic)
    }
}

impl<'g> Value<'g> {
    /// The smaller of each element and a number.
    #[track_caller]
    pub fn min(self, limit: f32) -> Value<'g> {
        let limit = self.graph().root().scalar(limit);
        self.apply("Min", &[limit], vec![], arithmetic)
    }

    /// The larger of each element and a number.
    #[track_caller]
    pub fn max(self, limit: f32) -> Value<'g> {
        let limit = self.graph().root().scalar(limit);
        self.apply("Max", &[limit], vec![], arithmetic)
    }

    /// `selfⁿ` for a constant exponent.
    #[track_caller]
    pub fn powf(self, exponent: f32) -> Value<'g> {
        let exponent = self.graph().root().scalar(exponent);
        self.apply("Pow", &[exponent], vec![], arithmetic)
    }

    /// Whether each element is less than the other's.
    #[track_caller]
    pub fn less(self, other: Value<'g>) -> Value<'g> {
        self.apply("Less", &[other], vec![], |types| Ok(arithmetic(types)?.with_dtype(DType::Bool)))
    }

    /// Whether each element is at least the other's.
    #[track_caller]
    pub fn greater_or_equal(self, other: Value<'g>) -> Value<'g> {
        self.apply("GreaterOrEqual", &[other], vec![], |types| Ok(arithmetic(types)?.with_dtype(DType::Bool)))
    }

    /// `yes` where this truth value holds, `no` elsewhere.
    #[track_caller]
    pub fn select(self, yes: Value<'g>, no: Value<'g>) -> Value<'g> {
        self.apply("Where", &[yes, no], vec![], |types| {
            if types[0].dtype != DType::Bool {
                return Err(format!("expected a condition of truth values, got {}", types[0]));
            }
            let dtype = same_dtype(&types[1..])?;
            let shape = broadcast(&types[0].shape, &broadcast(&types[1].shape, &types[2].shape)?)?;
            Ok(TensorType { dtype, shape })
        })
    }
}
