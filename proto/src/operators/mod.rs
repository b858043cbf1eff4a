//! The schemas of the custom operators: what exporters check calls against, and runtimes register kernels for.
//!
//! A [`Schema`] states an operator's operands (name, element type, shape, arity), attributes and results, in order, and
//! nothing else states them. Kernels find an operand's position by its name with [`position!`](crate::position), which
//! is evaluated at compile time.

mod causal_conv;
mod dense_norm;
mod lookup;
mod mamba_step;
mod retention;
mod schema;
mod selective;

pub use causal_conv::CAUSAL_CONV;
pub use dense_norm::DENSE_NORM;
pub use lookup::require;
pub use mamba_step::MAMBA_STEP;
pub use retention::{RETENTION, RETENTION_STEP};
pub use schema::{
    Arity, AttributeKind, AttributeSchema, AxisSize, DimensionSchema, GroupSchema, OperandSchema, OperandType, Repeat,
    ResultGroupSchema, ResultSchema, ResultShape, Schema,
};
pub use selective::{SELECTIVE_SCAN, SELECTIVE_STEP};

use crate::DType;

/// Domain of the custom operators.
pub const DOMAIN: &str = "ai.densessm";
/// Version of the domain.
pub const VERSION: i64 = 1;

/// The schemas of the operators that layers are made of, which every device has kernels for.
pub const SCHEMAS: [&Schema; 6] =
    [&CAUSAL_CONV, &SELECTIVE_SCAN, &SELECTIVE_STEP, &RETENTION, &RETENTION_STEP, &DENSE_NORM];

/// The schemas of the operators that are whole models, which only some GPUs have kernels for.
pub const FUSED_SCHEMAS: [&Schema; 1] = [&MAMBA_STEP];

/// The element types that activations may have.
const ACTIVATIONS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
const ACTIVATION: OperandType = OperandType::Activation;
const FP32: OperandType = OperandType::Fixed(DType::F32);

const BATCH: DimensionSchema = DimensionSchema { name: "batch", minimum: 0, description: "Rows of the call." };
const TIME: DimensionSchema =
    DimensionSchema { name: "time", minimum: 0, description: "Tokens of each row, padding included." };

/// The axis of the rows.
const B: AxisSize = AxisSize::product(&["batch"]);
/// The axis of the tokens.
const T: AxisSize = AxisSize::product(&["time"]);
/// The axis of the tokens where there is exactly one.
const ONE: AxisSize = AxisSize::product(&[]);

/// Valid tokens of each row.
const LENGTHS: OperandSchema = OperandSchema::required(
    "lengths",
    OperandType::Fixed(DType::I32),
    &[B],
    "Valid tokens of each right-padded row, from 0 to time.",
);

const EPSILON: AttributeSchema = AttributeSchema {
    name: "epsilon",
    kind: AttributeKind::Float { minimum: 0.0 },
    description: "Added to the mean square in the norm.",
};

const fn result(name: &'static str, dtype: OperandType, like: &'static str, description: &'static str) -> ResultSchema {
    ResultSchema { name, dtype, shape: ResultShape::Like(like), description }
}
