//! Falcon-Mamba.

use super::{Preset, mamba};
use serde_json::{Value, json};

pub(super) const PRESETS: [Preset; 2] = [
    Preset { name: "falcon-mamba-7b", config: || config(65024, 4096, 64, false), initial: mamba::initial },
    Preset { name: "falcon-mamba-tiny", config: || config(97, 64, 4, true), initial: mamba::initial },
];

fn config(vocab_size: usize, hidden_size: usize, layers: usize, tied: bool) -> Value {
    let mut config = mamba::config("falcon_mamba", "FalconMambaForCausalLM", vocab_size, hidden_size, layers);
    config["mixer_rms_eps"] = json!(1e-6);
    config["tie_word_embeddings"] = json!(tied);
    config
}
