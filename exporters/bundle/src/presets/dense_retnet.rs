//! DenseRetNet.

use super::Preset;
use crate::random::Initial;
use serde_json::{Value, json};

pub(super) const PRESETS: [Preset; 2] = [
    Preset {
        name: "denseretnet-350m",
        config: || config(Sizes { hidden: 1536, layers: 16, heads: 2, query_key: 768, reductions: [8, 32] }),
        initial,
    },
    Preset {
        name: "denseretnet-1.3b",
        config: || config(Sizes { hidden: 2560, layers: 25, heads: 4, query_key: 1280, reductions: [16, 8] }),
        initial,
    },
];

/// The sizes in which the published checkpoints differ.
struct Sizes {
    hidden: usize,
    layers: usize,
    heads: usize,
    query_key: usize,
    /// The gates' reductions: of keys and of values.
    reductions: [usize; 2],
}

/// The model hub's layout; m = 2.
fn config(Sizes { hidden, layers, heads, query_key, reductions: [keys, values] }: Sizes) -> Value {
    json!({
        "model_type": "DenseGauRetNet", "architectures": ["DenseGauRetNetForCausalLM"], "vocab_size": 32001,
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "query_key_dim": query_key, "v_factor": 2, "intermediate_k_select_scale": keys,
        "intermediate_v_select_scale": values, "dense_block_layers": 2, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "deepnorm": false, "tie_word_embeddings": false, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    })
}

/// Norms start at 1.
fn initial(tensor: &str) -> Option<Initial> {
    (tensor.ends_with("norm.weight")).then_some(Initial::Ones)
}
