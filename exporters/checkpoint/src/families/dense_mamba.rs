//! DenseMamba, in the layout of Transformers' `mamba`; plain Mamba is its case without dense connections.

use super::{
    Family, Recognition, in_layer,
    mamba::{intermediate_size, time_step_rank},
    number,
};
use crate::{Error, config::Fields};
use densessm_proto::{Architecture, DenseMamba, Projection};
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    known_by: "dense_mamba, mamba",
    recognise: |fields| match fields.text("model_type") {
        Some("mamba" | "dense_mamba") => Recognition::ByType,
        _ => Recognition::No,
    },
    parse: |fields, _| parse(fields).map(Architecture::DenseMamba),
    renamed: &[("backbone.embedding.weight", "backbone.embeddings.weight")],
};

fn parse(fields: &Fields<'_>) -> Result<DenseMamba, Error> {
    fields.require_silu()?;
    let plain = fields.text("model_type") == Some("mamba");
    let hidden_size = fields.size("hidden_size")?;
    let dense_block_layers = if plain { 0 } else { fields.count_or("dense_block_layers", 2)? };
    let middle = hidden_size / fields.size_or("dense_gate_reduction", 16)?;
    let (channel, state) = gates(fields)?;
    let gate = |exists: bool| (exists && dense_block_layers > 0).then_some(middle.max(1));
    Ok(DenseMamba {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        num_hidden_layers: fields.layers()?,
        intermediate_size: intermediate_size(fields, hidden_size)?,
        state_size: fields.size_or("state_size", 16)?,
        conv_kernel: fields.size_or("conv_kernel", 4)?,
        time_step_rank: time_step_rank(fields, hidden_size)?,
        use_bias: fields.flag_or("use_bias", false)?,
        use_conv_bias: fields.flag_or("use_conv_bias", true)?,
        layer_norm_epsilon: fields.epsilon("layer_norm_epsilon", 1e-5)?,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        dense_block_layers,
        channel_gate: gate(channel),
        state_gate: gate(state),
        dense_projection: match fields.config.get("dense_projection").map(Value::as_str) {
            None | Some(Some("identity")) => Projection::Identity,
            Some(Some("linear")) => Projection::Linear,
            Some(_) => return Err(fields.wrong("dense_projection", "\"identity\" or \"linear\"")),
        },
    })
}

/// Whether there is a channel gate, and a state gate.
fn gates(fields: &Fields<'_>) -> Result<(bool, bool), Error> {
    let expected = "a list of \"channel\" and \"state\"";
    let Some(value) = fields.config.get("dense_gate") else { return Ok((true, true)) };
    let Value::Array(names) = value else { return Err(fields.wrong("dense_gate", expected)) };
    let mut found = (false, false);
    for name in names {
        match name.as_str() {
            Some("channel") => found.0 = true,
            Some("state") => found.1 = true,
            _ => return Err(fields.wrong("dense_gate", expected)),
        }
    }
    Ok(found)
}

/// Projections of neighbours that the first layers do not have.
pub(super) fn ignorable(m: &DenseMamba, name: &str) -> bool {
    in_layer(name, "backbone.layers.", ".mixer.dense.projections.").is_some_and(|(layer, tensor)| {
        let neighbour = tensor.strip_suffix(".weight").and_then(number);
        (1..m.num_hidden_layers).contains(&layer)
            && neighbour.is_some_and(|neighbour| (layer..m.dense_block_layers).contains(&neighbour))
    })
}
