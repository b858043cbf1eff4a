//! The states a sequence carries from call to call: their names, order and shapes, stated once for everyone.

use crate::{Architecture, DType, manifest::Dimension, manifest::TensorEntry};

/// The input that counts the tokens each row has consumed (int64, `[batch]`; DenseRetNet only).
pub const PAST_LENGTH: &str = "past_length";
/// The output that counts them after the call.
pub const PRESENT_LENGTH: &str = "present_length";
/// The tokens of the call (int64, `[batch, sequence]`).
pub const INPUT_IDS: &str = "input_ids";
/// Valid tokens of each right-padded row (int32, `[batch]`; parallel graph only).
pub const SEQUENCE_LENGTHS: &str = "sequence_lengths";
/// The scores of the next token (fp32, `[batch, 1 or sequence, vocabulary]`).
pub const LOGITS: &str = "logits";
/// The symbolic dimension of the rows.
pub const BATCH: &str = "batch";
/// The symbolic dimension of the tokens of one call.
pub const SEQUENCE: &str = "sequence";

/// One fp32 state tensor that goes in as `past_key_values.…` and comes out as `present.…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// Layer it belongs to, from 0.
    pub layer: usize,
    /// Its input's name.
    pub past: String,
    /// Its output's name.
    pub present: String,
    /// Its shape for one sequence, without the leading batch axis.
    pub shape: Vec<usize>,
}

impl StateTensor {
    fn new(layer: usize, kind: &str, shape: Vec<usize>) -> Self {
        Self {
            layer,
            past: format!("past_key_values.{layer}.{kind}"),
            present: format!("present.{layer}.{kind}"),
            shape,
        }
    }

    /// Elements of one sequence.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The tensor's entry in a manifest, under its input's or its output's name.
    pub fn entry(&self, name: &str) -> TensorEntry {
        let sizes = self.shape.iter().map(|&size| Dimension::Size(size));
        TensorEntry {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: std::iter::once(Dimension::Symbol(BATCH.to_owned())).chain(sizes).collect(),
        }
    }
}

/// All states of a model, in the order in which its graphs list them.
///
/// DenseMamba: per layer `conv_state [D, K-1]` (absent for K = 1) and `recurrent_state [D, N]`.
/// DenseRetNet: per layer `recurrent_state [H, dk, dv]`.
pub fn layout(architecture: &Architecture) -> Vec<StateTensor> {
    let layers = 0..architecture.num_hidden_layers();
    match architecture {
        Architecture::DenseMamba(a) => layers
            .flat_map(|l| {
                [
                    StateTensor::new(l, "conv_state", vec![a.intermediate_size, a.conv_kernel - 1]),
                    StateTensor::new(l, "recurrent_state", vec![a.intermediate_size, a.state_size]),
                ]
            })
            .filter(|state| state.elements() > 0)
            .collect(),
        Architecture::DenseRetNet(a) => layers
            .map(|l| {
                StateTensor::new(
                    l,
                    "recurrent_state",
                    vec![a.num_attention_heads, a.head_key_dim(), a.head_value_dim()],
                )
            })
            .collect(),
    }
}

/// Bytes of all states of one sequence, the position counter included.
pub fn bytes_per_sequence(architecture: &Architecture) -> usize {
    let counter = if architecture.counts_positions() { size_of::<i64>() } else { 0 };
    layout(architecture).iter().map(|state| state.elements() * size_of::<f32>()).sum::<usize>() + counter
}
