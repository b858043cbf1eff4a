//! The schema of DenseRetNet's dense connection.

use super::{
    ACTIVATION, ACTIVATIONS, Arity, AxisSize, B, BATCH, DOMAIN, DimensionSchema, EPSILON, FP32, GroupSchema,
    OperandSchema, Repeat, Schema, T, TIME, VERSION, result,
};

const N: AxisSize = AxisSize::product(&["width"]);

/// RMSNorm of a layer's vectors plus the gated sum of those of the layers below.
pub const DENSE_NORM: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "DenseNorm",
    description: "Adds the gated sum of the vectors of the layers below to a layer's own and normalises the result.",
    activations: ACTIVATIONS,
    dimensions: &[BATCH, TIME, DimensionSchema { name: "width", minimum: 1, description: "Size of a vector." }],
    attributes: &[EPSILON],
    operands: &[
        OperandSchema::required("own", ACTIVATION, &[B, T, N], "The layer's own vectors."),
        OperandSchema::required("weight", FP32, &[N], "Weight of the norm."),
        OperandSchema::required("gate", ACTIVATION, &[B, T, N], "One gate for all neighbours, before silu."),
    ],
    groups: &[GroupSchema {
        name: "neighbours",
        arity: Arity::Required,
        repeat: Repeat::Rest { minimum: 1 },
        operands: &[OperandSchema::required("vectors", ACTIVATION, &[B, T, N], "The vectors of a layer below.")],
    }],
    results: &[result("y", ACTIVATION, "own", "The normalised vectors.")],
    result_group: None,
};
