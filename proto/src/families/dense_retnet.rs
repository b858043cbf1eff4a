//! DenseRetNet, and the gated RetNet as its case without dense connections.

use super::{Family, neighbours};
use crate::{
    DType, StateTensor,
    operators::{DENSE_NORM, RETENTION, RETENTION_STEP},
    probes::{LayerProbes, ProbeList},
    states::LOGITS,
};
use serde::{Deserialize, Serialize};

/// Dimensions of a DenseRetNet (arXiv 2403.00818, section 3.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseRetNet {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: retention heads.
    pub num_attention_heads: usize,
    /// Q: width of queries and keys, all heads together.
    pub query_key_dim: usize,
    /// E: width of values, all heads together (`v_factor` times the hidden size).
    pub value_dim: usize,
    /// Middle width of the key gate's perceptron.
    pub k_gate: usize,
    /// Middle width of the value gate's perceptron.
    pub v_gate: usize,
    /// Epsilon of the root-mean-square norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// m: the number of layers below that a layer reads; 0 is a gated RetNet.
    pub dense_block_layers: usize,
}

impl DenseRetNet {
    /// dk: width of one head's queries and keys.
    pub fn head_key_dim(&self) -> usize {
        self.query_key_dim.checked_div(self.num_attention_heads).unwrap_or(0)
    }

    /// dv: width of one head's values.
    pub fn head_value_dim(&self) -> usize {
        self.value_dim.checked_div(self.num_attention_heads).unwrap_or(0)
    }

    /// The layers whose keys and values layer `layer` reads, nearest first.
    pub fn neighbours(&self, layer: usize) -> impl Iterator<Item = usize> + use<> {
        neighbours(layer, self.dense_block_layers)
    }

    /// `γ_h = 1 - 2^(-5-h)`: the factor by which one token scales head `h`'s state. It rounds to 1 from head 49 on; see
    /// [`log_decay`](Self::log_decay).
    pub fn decay(head: usize) -> f64 {
        1.0 - Self::decay_gap(head)
    }

    /// `1 - γ_h = 2^(-5-h)`, exactly (0 from head 1070 on).
    pub fn decay_gap(head: usize) -> f64 {
        (-5.0 - head as f64).exp2()
    }

    /// `ln γ_h`, to the last digits even where γ itself rounds to 1.
    pub fn log_decay(head: usize) -> f64 {
        (-Self::decay_gap(head)).ln_1p()
    }
}

impl Family for DenseRetNet {
    fn name(&self) -> &'static str {
        "DenseRetNet"
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_hidden_layers(&self) -> usize {
        self.num_hidden_layers
    }

    fn tie_word_embeddings(&self) -> bool {
        self.tie_word_embeddings
    }

    fn dense_block_layers(&self) -> usize {
        self.dense_block_layers
    }

    fn counts_positions(&self) -> bool {
        true
    }

    /// `recurrent_state [H, dk, dv]`.
    fn states(&self, layer: usize) -> Vec<StateTensor> {
        let shape = vec![self.num_attention_heads, self.head_key_dim(), self.head_value_dim()];
        vec![StateTensor::new(layer, "recurrent_state", DType::F32, shape)]
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("query_key_dim", self.query_key_dim),
            ("value_dim", self.value_dim),
        ]
    }

    fn check(&self) -> Result<(), String> {
        let (heads, keys, values) = (self.num_attention_heads, self.query_key_dim, self.value_dim);
        if heads == 0 || !keys.is_multiple_of(heads) || !values.is_multiple_of(heads) {
            return Err(format!("expected heads that divide {keys} and {values}, got {heads}"));
        }
        Ok(())
    }

    /// Each state takes a product, a product and a sum for its update and two operations for its read-out.
    fn recurrence_flops(&self) -> usize {
        self.num_hidden_layers * self.head_key_dim() * self.value_dim * 5
    }

    fn probes(&self, list: &mut ProbeList) {
        let (hidden, keys, values) = (self.hidden_size, self.query_key_dim, self.value_dim);
        list.embeddings("model.embed_tokens", "model", hidden);
        for layer in 0..self.num_hidden_layers {
            let mut layer = list.layer("model", layer);
            layer.tokens("input_layernorm", "input_layernorm/Mul", hidden);
            layer.tokens("self_attn.q_proj", "self_attn/Split.0", keys);
            layer.tokens("self_attn.k_proj", "self_attn/Mul_1", keys);
            // Layer 0 has neither gates nor norms for the layers below.
            if layer.index > 0 {
                let gated = self.neighbours(layer.index).next().is_some();
                fused(&mut layer, "k", DENSE_NORM.name, keys, gated);
                fused(&mut layer, "v", &format!("{}_1", DENSE_NORM.name), values, gated);
            }
            layer.state("recurrent_state");
            let retention = layer.by_kind(&RETENTION, &RETENTION_STEP);
            layer.operator("self_attn.retention", &format!("self_attn/{retention}.0"), values);
            layer.tokens("self_attn.to_out.0", "self_attn/to_out/0/MatMul", hidden);
            layer.output(hidden);
        }
        list.positions("model.norm", "model/norm/Mul", hidden);
        list.positions(LOGITS, LOGITS, self.vocab_size);
    }
}

/// A layer's keys (`k`) or values (`v`) with those of the layers below, through a gate and a norm.
fn fused(layer: &mut LayerProbes<'_>, side: &str, operator: &str, width: usize, gated: bool) {
    let norm = format!("self_attn.{side}_norm");
    if gated {
        let value = format!("self_attn/{side}_select/fc2/MatMul");
        layer.tokens(&format!("self_attn.{side}_select.fc2"), &value, width);
        layer.operator(&norm, &format!("self_attn/{operator}"), width);
    } else {
        layer.tokens(&norm, &format!("self_attn/{side}_norm/Mul"), width);
    }
}
