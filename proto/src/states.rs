//! The tensors that go in and out of every graph, and the states that a sequence carries from call to call.

use crate::{Architecture, DType, manifest::Dimension, manifest::TensorEntry};

/// The input that counts the tokens each row has consumed (int64, `[batch]`; only where positions are counted).
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
/// The element type of the position counters [`PAST_LENGTH`] and [`PRESENT_LENGTH`].
pub const LENGTH_DTYPE: DType = DType::I64;

/// One state tensor that goes in as `past_key_values.…` and comes out as `present.…`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateTensor {
    /// Layer it belongs to, from 0.
    pub layer: usize,
    /// Its input's name.
    pub past: String,
    /// Its output's name.
    pub present: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape for one sequence, without the leading batch axis.
    pub shape: Vec<usize>,
}

impl StateTensor {
    /// The state `kind` (`conv_state`, `recurrent_state`) of a layer, whose shape for one sequence is `shape`.
    pub fn new(layer: usize, kind: &str, dtype: DType, shape: Vec<usize>) -> Self {
        let (past, present) = (format!("past_key_values.{layer}.{kind}"), format!("present.{layer}.{kind}"));
        Self { layer, past, present, dtype, shape }
    }

    /// Elements of one sequence; `usize::MAX` if they cannot be counted.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size))
    }

    /// Bytes of one sequence; `usize::MAX` if they cannot be counted.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.size())
    }

    /// The tensor's entry in a manifest, under its input's or its output's name.
    pub fn entry(&self, name: &str) -> TensorEntry {
        let sizes = self.shape.iter().map(|&size| Dimension::Size(size));
        TensorEntry {
            name: name.to_owned(),
            dtype: self.dtype,
            shape: std::iter::once(Dimension::Symbol(BATCH.to_owned())).chain(sizes).collect(),
        }
    }
}

/// All states of a model, layer by layer, in the order in which its graphs list them.
pub fn layout(architecture: &Architecture) -> Vec<StateTensor> {
    (0..architecture.num_hidden_layers()).flat_map(|layer| architecture.family().states(layer)).collect()
}

/// Bytes of all states of one sequence, the position counter included; `usize::MAX` if they cannot be counted.
///
/// It takes the same time for any number of layers, so that it may be asked about dimensions that nobody has checked.
pub fn bytes_per_sequence(architecture: &Architecture) -> usize {
    let counter = if architecture.counts_positions() { LENGTH_DTYPE.size() } else { 0 };
    let layer = architecture.family().states(0).iter().map(StateTensor::bytes).fold(0, usize::saturating_add);
    layer.saturating_mul(architecture.num_hidden_layers()).saturating_add(counter)
}
