//! DenseMamba and Mamba.

use super::{Preset, mamba};
use serde_json::{Value, json};

pub(super) const PRESETS: [Preset; 4] = [
    Preset { name: "densemamba-360m", config: || dense(1024), initial: mamba::initial },
    Preset { name: "densemamba-1.3b", config: || dense(2048), initial: mamba::initial },
    Preset {
        name: "mamba-370m",
        config: || mamba::config("mamba", "MambaForCausalLM", 50280, 1024, 48),
        initial: mamba::initial,
    },
    Preset {
        name: "mamba-tiny",
        config: || mamba::config("mamba", "MambaForCausalLM", 97, 64, 4),
        initial: mamba::initial,
    },
];

/// The paper's sizes: two layers more than Mamba's because the vocabulary is LLaMA's; m = 2.
fn dense(hidden_size: usize) -> Value {
    let mut config = mamba::config("dense_mamba", "DenseMambaForCausalLM", 32000, hidden_size, 50);
    config["dense_block_layers"] = json!(2);
    config["dense_gate"] = json!(["channel", "state"]);
    config["dense_gate_reduction"] = json!(16);
    config["dense_projection"] = json!("identity");
    config
}
