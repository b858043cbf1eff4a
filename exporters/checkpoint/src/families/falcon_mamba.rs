//! Falcon-Mamba, in the layout of Transformers' `falcon_mamba`.

use super::{
    Family, Recognition,
    mamba::{intermediate_size, time_step_rank},
};
use crate::{Error, config::Fields};
use densessm_proto::{Architecture, FalconMamba};

/// Fields that choose how Transformers computes or initialises the model. They do not change what it computes.
const WITHOUT_EFFECT: [&str; 5] =
    ["rescale_prenorm_residual", "residual_in_fp32", "use_associative_scan", "use_falcon_mambapy", "use_mambapy"];

pub(super) const FAMILY: Family = Family {
    known_by: "falcon_mamba",
    recognise: |fields| match fields.text("model_type") {
        Some("falcon_mamba") => Recognition::ByType,
        _ => Recognition::No,
    },
    parse: |fields, _| parse(fields).map(Architecture::FalconMamba),
    renamed: &[],
};

fn parse(fields: &Fields<'_>) -> Result<FalconMamba, Error> {
    fields.require_silu()?;
    for field in WITHOUT_EFFECT {
        fields.flag_or(field, false)?;
    }
    let hidden_size = fields.size("hidden_size")?;
    Ok(FalconMamba {
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
        mixer_rms_eps: fields.epsilon("mixer_rms_eps", 1e-6)?,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
    })
}
