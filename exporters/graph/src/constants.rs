//! Declaring constants.

use crate::{
    DType, Scope, TensorType, Value,
    error::Line,
    literal::{Literal, decimal},
};
use std::panic::Location;

impl<'g> Scope<'g> {
    /// Declares a constant fp32 scalar, shape `[]`.
    #[track_caller]
    pub fn scalar(self, value: f32) -> Value<'g> {
        self.scalar_as(value.into(), DType::F32)
    }

    /// Declares a constant scalar, shape `[]`, in a floating-point type, rounded to nearest, ties to even.
    ///
    /// A number that the type cannot hold is an error, as is one that would become 0 in it.
    #[track_caller]
    pub fn scalar_as(self, value: f64, dtype: DType) -> Value<'g> {
        let literal = Literal::floats(TensorType::new(dtype, [0_usize; 0]), &[value]);
        self.constant(format!("literal/{}", decimal(value)), literal, Location::caller())
    }

    /// Declares a constant int64 scalar, shape `[]`.
    #[track_caller]
    pub fn integer(self, value: i64) -> Value<'g> {
        self.integer_as(value, DType::I64)
    }

    /// Declares a constant scalar, shape `[]`, in an integer type, which must be able to hold it.
    #[track_caller]
    pub fn integer_as(self, value: i64, dtype: DType) -> Value<'g> {
        let tensor = TensorType::new(dtype, [0_usize; 0]);
        self.constant(format!("literal/{value}"), Literal::integers(tensor, &[value]), Location::caller())
    }

    /// Declares a constant fp32 vector `[n]`.
    #[track_caller]
    pub fn floats(self, name: &str, values: &[f32]) -> Value<'g> {
        self.floats_as(name, &values.iter().copied().map(f64::from).collect::<Vec<_>>(), DType::F32)
    }

    /// Declares a constant vector `[n]` in a floating-point type, rounded and checked as
    /// [`scalar_as`](Scope::scalar_as) does.
    #[track_caller]
    pub fn floats_as(self, name: &str, values: &[f64], dtype: DType) -> Value<'g> {
        let literal = Literal::floats(TensorType::new(dtype, [values.len()]), values);
        self.constant(format!("literal/{name}"), literal, Location::caller())
    }

    /// Declares a constant int64 vector `[n]`.
    #[track_caller]
    pub fn integers(self, name: &str, values: &[i64]) -> Value<'g> {
        let literal = Literal::integers(TensorType::new(DType::I64, [values.len()]), values);
        self.constant(format!("literal/{name}"), literal, Location::caller())
    }

    /// A constant of the current body, which stores equal ones once.
    fn constant(self, name: String, literal: Result<Literal, String>, at: Line) -> Value<'g> {
        let mut arena = self.graph().arena.borrow_mut();
        let literal = match literal {
            Ok(literal) => literal,
            Err(problem) => {
                arena.fail(format!("constant `{name}`"), problem, at);
                return self.poison();
            }
        };
        let body = arena.current;
        if let Some((id, _)) = arena.bodies[body].literals.iter().find(|(_, known)| *known == literal) {
            return Value::new(self.graph(), *id);
        }
        let path = std::mem::take(&mut arena.path);
        let name = arena.node_name(&name);
        arena.path = path;
        let id = arena.add_value(name, literal.tensor.clone(), body, at);
        arena.bodies[body].literals.push((id, literal));
        Value::new(self.graph(), id)
    }
}
