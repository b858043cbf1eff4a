//! The schemas of retention: over a sequence, and for one token.

use super::{
    ACTIVATION, ACTIVATIONS, AttributeKind, AttributeSchema, AxisSize, B, BATCH, DOMAIN, DimensionSchema, EPSILON,
    FP32, LENGTHS, ONE, OperandSchema, ResultSchema, Schema, T, TIME, VERSION, result,
};

/// The limit keeps products of sizes far from overflowing.
const MOST_HEADS: i64 = (1 << 20) - 1;

const ATTRIBUTES: [AttributeSchema; 2] = [
    AttributeSchema {
        name: "heads",
        kind: AttributeKind::Int { minimum: 1, maximum: MOST_HEADS },
        description: "Number of heads.",
    },
    EPSILON,
];

const HEADS: DimensionSchema =
    DimensionSchema { name: "heads", minimum: 1, description: "Heads: the value of the attribute." };
const PAIRS: DimensionSchema = DimensionSchema {
    name: "pairs",
    minimum: 1,
    description: "Half the size of a head's key: the pairs of numbers that are rotated together.",
};
const HEAD_VALUE: DimensionSchema =
    DimensionSchema { name: "head_value", minimum: 1, description: "Size of a head's value." };

const H: AxisSize = AxisSize::product(&["heads"]);
const P: AxisSize = AxisSize::product(&["pairs"]);
const DV: AxisSize = AxisSize::product(&["head_value"]);
/// Keys of all heads, side by side.
const Q: AxisSize = AxisSize::product(&["heads", "pairs"]).times(2);
/// Values of all heads, side by side.
const E: AxisSize = AxisSize::product(&["heads", "head_value"]);

/// The operands that both operators have, with the axis of their tokens; then those that only one has.
macro_rules! operands {
    ($time:expr $(, $more:expr)?) => {
        &[
            OperandSchema::required("q", ACTIVATION, &[B, $time, Q], "Queries of all heads, side by side."),
            OperandSchema::required("k", ACTIVATION, &[B, $time, Q], "Keys of all heads, side by side."),
            OperandSchema::required("v", ACTIVATION, &[B, $time, E], "Values of all heads, side by side."),
            OperandSchema::required("cos", FP32, &[B, $time, P], "Cosines of the positions' angles."),
            OperandSchema::required("sin", FP32, &[B, $time, P], "Sines of the positions' angles."),
            OperandSchema::required("scale", FP32, &[B, $time, H], "The normaliser 1/sqrt(s) of each position."),
            OperandSchema::required("state", FP32, &[B, H, P.times(2), DV], "The state before this call."),
            OperandSchema::required("gate", ACTIVATION, &[B, $time, E], "What the output is multiplied with."),
            OperandSchema::required("norm", FP32, &[DV], "Weight of the norm, one for all heads."),
            $($more)?
        ]
    };
}

const OUTPUT: ResultSchema = result("o", ACTIVATION, "v", "Outputs of all heads, side by side.");

/// Retention over a sequence.
pub const RETENTION: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "Retention",
    description: "Runs retention with rotation, decay, normaliser and output gate over the tokens of each row.",
    activations: ACTIVATIONS,
    dimensions: &[BATCH, TIME, HEADS, PAIRS, HEAD_VALUE],
    attributes: &ATTRIBUTES,
    operands: operands!(T, LENGTHS),
    groups: &[],
    results: &[OUTPUT, result("present", FP32, "state", "The state after each row's last valid token.")],
    result_group: None,
};

/// One token of retention.
pub const RETENTION_STEP: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "RetentionStep",
    description: "Advances retention by one token.",
    activations: ACTIVATIONS,
    dimensions: &[BATCH, HEADS, PAIRS, HEAD_VALUE],
    attributes: &ATTRIBUTES,
    operands: operands!(ONE),
    groups: &[],
    results: &[OUTPUT, result("present", FP32, "state", "The state after this token.")],
    result_group: None,
};
