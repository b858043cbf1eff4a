//! The schema of the whole decode step of Mamba and DenseMamba.

use super::{
    ACTIVATION, Arity, AttributeKind, AttributeSchema, AxisSize, B, BATCH, DOMAIN, DimensionSchema, EPSILON, FP32,
    GroupSchema, ONE, OperandSchema, OperandType, Repeat, ResultGroupSchema, ResultSchema, ResultShape, Schema,
    VERSION, result,
};
use crate::DType;

/// The limit keeps counts of operands far from overflowing.
const MOST_LAYERS: i64 = (1 << 16) - 1;
const MOST_ROWS: i64 = (1 << 24) - 1;

const V: AxisSize = AxisSize::product(&["vocabulary"]);
const H: AxisSize = AxisSize::product(&["hidden"]);
const D: AxisSize = AxisSize::product(&["channels"]);
const N: AxisSize = AxisSize::product(&["states"]);
const R: AxisSize = AxisSize::product(&["rank"]);
const K: AxisSize = AxisSize::product(&["taps"]);
const G: AxisSize = AxisSize::product(&["gate"]);

/// A layer's weights and states, with a prefix of the names and the rows of its first product.
macro_rules! layer {
    ($prefix:literal, $rows:expr, $in_proj:literal $(, $before:expr)* $(,)?) => {
        &[
            $($before,)*
            OperandSchema::required(concat!($prefix, "norm"), FP32, &[H], "Weights of the norm before the layer."),
            OperandSchema::required(concat!($prefix, "in_proj"), ACTIVATION, &[$rows, H], $in_proj),
            OperandSchema::required(
                concat!($prefix, "conv_weight"),
                FP32,
                &[K, D],
                "Filters of the convolution; the last tap is that of the newest input.",
            ),
            OperandSchema::required(concat!($prefix, "conv_bias"), FP32, &[D], "Bias of the convolution."),
            OperandSchema::required(
                concat!($prefix, "x_proj"),
                ACTIVATION,
                &[AxisSize::product(&["projected"]), D],
                "Projection to step sizes, input vectors and output vectors, R + 2 N rows.",
            ),
            OperandSchema::required(concat!($prefix, "dt_proj"), ACTIVATION, &[D, R], "Projection of the step sizes."),
            OperandSchema::required(concat!($prefix, "dt_bias"), FP32, &[D], "Bias of the step sizes."),
            OperandSchema::required(concat!($prefix, "a"), FP32, &[D, N], "Decay rates, negative."),
            OperandSchema::required(concat!($prefix, "skip"), FP32, &[D], "Weights of the skip connection."),
            OperandSchema::required(concat!($prefix, "out_proj"), ACTIVATION, &[H, D], "Output projection."),
            OperandSchema::required(
                concat!($prefix, "conv_state"),
                FP32,
                &[B, D, K.plus(-1)],
                "The convolution's inputs before this token, oldest first.",
            ),
            OperandSchema::required(
                concat!($prefix, "state"),
                FP32,
                &[B, D, N],
                "Hidden states before this token.",
            ),
        ]
    };
}

const CONV_STATE: &str = "The convolution's inputs up to this token, oldest first.";
const STATE: &str = "Hidden states after this token.";

/// The whole decode step of Mamba or DenseMamba. The first layer has operands of its own, as it reads no layer below.
pub const MAMBA_STEP: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "MambaStep",
    description: "Advances a Mamba or DenseMamba by one token: embedding, all layers, final norm and output head.",
    activations: &[DType::F16, DType::BF16],
    dimensions: &[
        BATCH,
        DimensionSchema { name: "vocabulary", minimum: 1, description: "Tokens of the vocabulary." },
        DimensionSchema { name: "hidden", minimum: 1, description: "Width of the residual stream." },
        DimensionSchema { name: "channels", minimum: 1, description: "Channels of a layer, D." },
        DimensionSchema { name: "states", minimum: 1, description: "Numbers in the hidden state of a channel, N." },
        DimensionSchema { name: "rank", minimum: 1, description: "Width of the step sizes' projection, R." },
        DimensionSchema { name: "projected", minimum: 1, description: "Rows of `x_proj`, R + 2 N." },
        DimensionSchema { name: "taps", minimum: 2, description: "Length of the convolution's filters." },
        DimensionSchema {
            name: "upper_rows",
            minimum: 1,
            description: "Rows of `in_proj` above the first layer, where the gates' first matrices follow.",
        },
        DimensionSchema { name: "gate", minimum: 0, description: "Middle width of each gate, G." },
    ],
    attributes: &[
        AttributeSchema {
            name: "upper_layers",
            kind: AttributeKind::Int { minimum: 1, maximum: MOST_LAYERS },
            description: "Number of layers above the first.",
        },
        AttributeSchema {
            name: "gated_layers",
            kind: AttributeKind::Int { minimum: 0, maximum: MOST_LAYERS },
            description: "Number of layers with gates: all above the first of a DenseMamba, none of a Mamba.",
        },
        AttributeSchema {
            name: "neighbours",
            kind: AttributeKind::Int { minimum: 0, maximum: MOST_LAYERS },
            description: "Number of layers below whose hidden states a layer reads, as far as there are so many.",
        },
        AttributeSchema {
            name: "upper_rows",
            kind: AttributeKind::Int { minimum: 1, maximum: MOST_ROWS },
            description: "Rows of `in_proj` above the first layer, 2 D + 2 G; 2 D without gates.",
        },
        AttributeSchema {
            name: "gate",
            kind: AttributeKind::Int { minimum: 0, maximum: MOST_ROWS },
            description: "Middle width of each gate, G; 0 without gates.",
        },
        EPSILON,
    ],
    operands: layer!(
        "first_",
        D.times(2),
        "Projection to the convolution's input and the output gate.",
        OperandSchema::required("tokens", OperandType::Fixed(DType::I64), &[B, ONE], "Token ids."),
        OperandSchema::required("embedding", ACTIVATION, &[V, H], "Vectors of the tokens."),
        OperandSchema::required("norm", FP32, &[H], "Weights of the norm before the head."),
        OperandSchema::required("head", ACTIVATION, &[V, H], "Output head; the embedding where these are tied."),
    ),
    groups: &[
        GroupSchema {
            name: "upper",
            arity: Arity::Required,
            repeat: Repeat::Attribute("upper_layers"),
            operands: layer!(
                "",
                AxisSize::product(&["upper_rows"]),
                "Projection to the convolution's input, the output gate and the middles of the gates.",
            ),
        },
        GroupSchema {
            name: "gates",
            arity: Arity::Required,
            repeat: Repeat::Attribute("gated_layers"),
            operands: &[
                OperandSchema::required("channel_gate", ACTIVATION, &[D, G], "Second matrix of the channels' gate."),
                OperandSchema::required("state_gate", ACTIVATION, &[N, G], "Second matrix of the states' gate."),
            ],
        },
    ],
    results: &[
        ResultSchema {
            name: "logits",
            dtype: FP32,
            shape: ResultShape::Axes(&[B, ONE, V]),
            description: "Scores of all tokens.",
        },
        result("first_present_conv_state", FP32, "first_conv_state", CONV_STATE),
        result("first_present_state", FP32, "first_state", STATE),
    ],
    result_group: Some(ResultGroupSchema {
        group: "upper",
        results: &[
            result("present_conv_state", FP32, "conv_state", CONV_STATE),
            result("present_state", FP32, "state", STATE),
        ],
    }),
};
