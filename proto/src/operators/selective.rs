//! The schemas of the selective scan: over a sequence, and for one token.

use super::{
    ACTIVATION, ACTIVATIONS, Arity, AttributeKind, AttributeSchema, AxisSize, B, BATCH, DOMAIN, DimensionSchema, FP32,
    GroupSchema, LENGTHS, ONE, OperandSchema, Repeat, Schema, T, TIME, VERSION, result,
};

/// The limit keeps counts of operands far from overflowing.
const MOST_NEIGHBOURS: i64 = (1 << 20) - 1;

const NEIGHBOURS: AttributeSchema = AttributeSchema {
    name: "neighbours",
    kind: AttributeKind::Int { minimum: 0, maximum: MOST_NEIGHBOURS },
    description: "Number of layers below whose hidden states are read.",
};

const CHANNELS: DimensionSchema = DimensionSchema { name: "channels", minimum: 0, description: "Channels." };
const STATES: DimensionSchema =
    DimensionSchema { name: "states", minimum: 1, description: "Numbers in the hidden state of a channel." };

const D: AxisSize = AxisSize::product(&["channels"]);
const N: AxisSize = AxisSize::product(&["states"]);

/// A layer's recurrence, with a prefix of the names and the axis of the tokens; then further operands.
macro_rules! recurrence {
    ($prefix:literal, $time:expr $(, $more:expr)* $(,)?) => {
        &[
            OperandSchema::required(concat!($prefix, "u"), ACTIVATION, &[B, $time, D], "Inputs."),
            OperandSchema::required(
                concat!($prefix, "delta"),
                ACTIVATION,
                &[B, $time, D],
                "Step sizes before bias and softplus.",
            ),
            OperandSchema::required(concat!($prefix, "delta_bias"), FP32, &[D], "Bias of the step sizes."),
            OperandSchema::required(concat!($prefix, "a"), FP32, &[D, N], "Decay rates, negative."),
            OperandSchema::required(concat!($prefix, "b"), ACTIVATION, &[B, $time, N], "Input vectors."),
            OperandSchema::required(concat!($prefix, "state"), FP32, &[B, D, N], "Hidden states before this call."),
            $($more),*
        ]
    };
}

/// The operands before the variadic tail: a recurrence, and what its output is made of.
macro_rules! operands {
    ($prefix:literal, $time:expr $(, $lengths:expr)?) => {
        recurrence!(
            $prefix,
            $time,
            OperandSchema::required("c", ACTIVATION, &[B, $time, N], "Output vectors."),
            OperandSchema::required("skip", FP32, &[D], "Weights of the skip connection."),
            OperandSchema::required("z", ACTIVATION, &[B, $time, D], "Output gate, before silu."),
            $($lengths,)?
            OperandSchema::optional(
                "channel_gate",
                ACTIVATION,
                &[B, $time, D],
                "Gate of the neighbours' channels, before silu; no gate if absent.",
            ),
            OperandSchema::optional(
                "state_gate",
                ACTIVATION,
                &[B, $time, N],
                "Gate of the neighbours' states, before silu; no gate if absent.",
            ),
        )
    };
}

const PROJECTIONS: GroupSchema = GroupSchema {
    name: "projections",
    arity: Arity::Optional,
    repeat: Repeat::Attribute("neighbours"),
    operands: &[OperandSchema::required(
        "projection",
        FP32,
        &[N, N],
        "Projection of a neighbour's hidden states; the identity if absent.",
    )],
};

/// The selective scan over a sequence, with dense neighbours.
pub const SELECTIVE_SCAN: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "SelectiveScan",
    description: "Runs the selective scan over the tokens of each row, reads the hidden states of the layers below with \
                  the layer's own, and applies skip connection and output gate.",
    activations: ACTIVATIONS,
    dimensions: &[BATCH, TIME, CHANNELS, STATES],
    attributes: &[NEIGHBOURS],
    operands: operands!("own_", T, LENGTHS),
    groups: &[
        GroupSchema {
            name: "neighbours",
            arity: Arity::Required,
            repeat: Repeat::Attribute("neighbours"),
            operands: recurrence!("", T),
        },
        PROJECTIONS,
    ],
    results: &[
        result("y", ACTIVATION, "own_u", "Outputs."),
        result("present", FP32, "own_state", "Hidden states after each row's last valid token."),
    ],
    result_group: None,
};

/// One token of the selective scan, with the neighbours' hidden states given.
pub const SELECTIVE_STEP: Schema = Schema {
    domain: DOMAIN,
    version: VERSION,
    name: "SelectiveStep",
    description: "Advances the selective scan by one token, given the hidden states of the layers below.",
    activations: ACTIVATIONS,
    dimensions: &[BATCH, CHANNELS, STATES],
    attributes: &[NEIGHBOURS],
    operands: operands!("", ONE),
    groups: &[
        GroupSchema {
            name: "neighbours",
            arity: Arity::Required,
            repeat: Repeat::Attribute("neighbours"),
            operands: &[OperandSchema::required(
                "state",
                FP32,
                &[B, D, N],
                "Hidden states of a layer below after this token, nearest layer first.",
            )],
        },
        PROJECTIONS,
    ],
    results: &[
        result("y", ACTIVATION, "u", "Outputs."),
        result("present", FP32, "state", "Hidden states after this token."),
    ],
    result_group: None,
};
