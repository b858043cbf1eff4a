//! The schema of the causal convolution.

use super::{
    ACTIVATION, ACTIVATIONS, Arity, AxisSize, B, BATCH, DOMAIN, DimensionSchema, FP32, LENGTHS, OperandSchema, Schema,
    T, TIME, VERSION, result,
};

const D: AxisSize = AxisSize::product(&["channels"]);
const K: AxisSize = AxisSize::product(&["taps"]);

/// Causal depthwise convolution with carried inputs, then silu.
pub const CAUSAL_CONV: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "CausalConv",
    description: "Convolves each channel with its own causal filter over time, adds the bias and applies silu.",
    activations: ACTIVATIONS,
    dimensions: &[
        BATCH,
        TIME,
        DimensionSchema { name: "channels", minimum: 0, description: "Channels, each with a filter of its own." },
        DimensionSchema { name: "taps", minimum: 2, description: "Length of the filters." },
    ],
    attributes: &[],
    operands: &[
        OperandSchema::required("u", ACTIVATION, &[B, T, D], "Inputs."),
        OperandSchema::required("weight", FP32, &[K, D], "Filters; the last tap is that of the newest input."),
        OperandSchema::required("state", FP32, &[B, D, K.plus(-1)], "The inputs before this call, oldest first."),
        OperandSchema::optional("bias", FP32, &[D], "Bias; zero if absent."),
        OperandSchema {
            arity: Arity::Optional,
            description: "Valid tokens of each right-padded row, from 0 to time; all tokens if absent.",
            ..LENGTHS
        },
    ],
    groups: &[],
    results: &[
        result("y", ACTIVATION, "u", "Outputs."),
        result("present", FP32, "state", "The inputs up to each row's last valid token, oldest first."),
    ],
    result_group: None,
};
