//! What the checkpoints of Mamba's relatives have in common.

use crate::random::Initial;
use serde_json::{Value, json};

/// The `config.json` of a model with 16 states per channel, 4 taps and an expansion of 2.
pub(super) fn config(model_type: &str, class: &str, vocab_size: usize, hidden_size: usize, layers: usize) -> Value {
    json!({
        "model_type": model_type, "architectures": [class], "vocab_size": vocab_size,
        "hidden_size": hidden_size, "num_hidden_layers": layers, "state_size": 16, "conv_kernel": 4,
        "expand": 2, "intermediate_size": 2 * hidden_size, "time_step_rank": "auto", "use_bias": false,
        "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    })
}

/// Decay rates, step sizes, skips and norms start as in training (arXiv 2312.00752, section 3.6).
pub(super) fn initial(tensor: &str) -> Option<Initial> {
    let ends = |ending: &str| tensor.ends_with(ending);
    match () {
        () if ends(".A_log") => Some(Initial::LogOfCount),
        () if ends("dt_proj.bias") => Some(Initial::StepSizes),
        () if ends("norm.weight") || ends("norm_f.weight") || ends(".D") => Some(Initial::Ones),
        () => None,
    }
}
