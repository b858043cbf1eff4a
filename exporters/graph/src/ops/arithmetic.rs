//! Operators of two operands: `+ - * /` between values and with numbers, comparisons, and selection.

use super::{count, first, two};
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
    let (left, right) = two(types)?;
    Ok(TensorType { dtype, shape: broadcast(&left.shape, &right.shape)? })
}

/// An operator trait between values, and with a number on either side.
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
                self.$method(self.float(other))
            }
        }

        impl<'g> $trait<i64> for Value<'g> {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: i64) -> Value<'g> {
                if other == 0 && $op == "Div" {
                    self.fail("expected a divisor other than 0".to_owned());
                }
                self.$method(self.integer(other))
            }
        }

        impl<'g> $trait<Value<'g>> for f32 {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: Value<'g>) -> Value<'g> {
                other.float(self).$method(other)
            }
        }

        impl<'g> $trait<Value<'g>> for i64 {
            type Output = Value<'g>;

            #[track_caller]
            fn $method(self, other: Value<'g>) -> Value<'g> {
                other.integer(self).$method(other)
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
        self.apply("Neg", &[], vec![], |types| match first(types)?.dtype {
            DType::Bool | DType::U8 => Err(format!("expected signed numbers, got {}", first(types)?)),
            _ => Ok(first(types)?.clone()),
        })
    }
}

/// The remainder of an integer division, with the sign of the divisor.
impl<'g> Rem<i64> for Value<'g> {
    type Output = Value<'g>;

    #[track_caller]
    fn rem(self, divisor: i64) -> Value<'g> {
        if divisor == 0 {
            self.fail("expected a divisor other than 0".to_owned());
        }
        let divisor = self.integer(divisor);
        self.apply("Mod", &[divisor], vec![("fmod", 0_i64.into())], arithmetic)
    }
}

impl<'g> Value<'g> {
    /// A number as a constant of this value's floating-point type.
    #[track_caller]
    fn float(self, number: f32) -> Value<'g> {
        let Some(tensor) = self.tensor() else { return self };
        self.constants().scalar_as(number.into(), tensor.dtype)
    }

    /// A number as a constant of this value's integer type.
    #[track_caller]
    fn integer(self, number: i64) -> Value<'g> {
        let Some(tensor) = self.tensor() else { return self };
        self.constants().integer_as(number, tensor.dtype)
    }

    /// Returns the smaller of each element and a number.
    #[track_caller]
    pub fn min(self, limit: f32) -> Value<'g> {
        self.apply("Min", &[self.float(limit)], vec![], arithmetic)
    }

    /// Returns the larger of each element and a number.
    #[track_caller]
    pub fn max(self, limit: f32) -> Value<'g> {
        self.apply("Max", &[self.float(limit)], vec![], arithmetic)
    }

    /// Returns `selfⁿ` for a constant exponent.
    #[track_caller]
    pub fn powf(self, exponent: f32) -> Value<'g> {
        self.apply("Pow", &[self.float(exponent)], vec![], arithmetic)
    }

    /// Returns whether each element is less than the other's.
    #[track_caller]
    pub fn less(self, other: Value<'g>) -> Value<'g> {
        self.apply("Less", &[other], vec![], |types| Ok(arithmetic(types)?.with_dtype(DType::Bool)))
    }

    /// Returns whether each element is at least the other's.
    #[track_caller]
    pub fn greater_or_equal(self, other: Value<'g>) -> Value<'g> {
        self.apply("GreaterOrEqual", &[other], vec![], |types| Ok(arithmetic(types)?.with_dtype(DType::Bool)))
    }

    /// Returns `yes` where this truth value holds, and `no` elsewhere.
    #[track_caller]
    pub fn select(self, yes: Value<'g>, no: Value<'g>) -> Value<'g> {
        self.apply("Where", &[yes, no], vec![], |types| {
            let [condition, yes, no] = types else { return Err(count(3, types)) };
            if condition.dtype != DType::Bool {
                return Err(format!("expected a condition of truth values, got {condition}"));
            }
            let dtype = same_dtype(&types[1..])?;
            let shape = broadcast(&condition.shape, &broadcast(&yes.shape, &no.shape)?)?;
            Ok(TensorType { dtype, shape })
        })
    }
}
