//! DenseRetNet, in the layouts of the reference repository and of the model hub.

use super::{Family, Recognition, Shapes, in_layer};
use crate::{
    Error,
    config::{Fields, LARGEST},
};
use densessm_proto::{Architecture, DenseRetNet};

/// The fields that no other family has. The reference repository's checkpoints say `llama` in `model_type`.
const OWN_FIELDS: [&str; 3] = ["query_key_dim", "v_factor", "dense_block_layers"];

pub(super) const FAMILY: Family = Family {
    known_by: "the fields of DenseRetNet (query_key_dim, v_factor, dense_block_layers)",
    recognise: |fields| {
        if OWN_FIELDS.iter().all(|field| fields.has(field)) {
            Recognition::ByFields
        } else if fields.has("query_key_dim") || fields.has("v_factor") {
            Recognition::InPart
        } else {
            Recognition::No
        }
    },
    parse: |fields, shape| parse(fields, shape).map(Architecture::DenseRetNet),
    renamed: &[],
};

fn parse(fields: &Fields<'_>, shape: Shapes<'_, '_>) -> Result<DenseRetNet, Error> {
    fields.require_silu()?;
    if fields.flag_or("deepnorm", false)? {
        return Err(fields.wrong("deepnorm", "false, as the reference's forward pass does not support it either"));
    }
    if fields.flag_or("retnorm", false)? {
        return Err(fields.wrong("retnorm", "false, as no equations with it were published"));
    }
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let query_key_dim = fields.size("query_key_dim")?;
    fields.size("v_factor")?;
    let value_dim = fields.multiple_or("v_factor", 2, hidden_size)?;
    for (whole, name) in [(query_key_dim, "query_key_dim"), (value_dim, "v_factor · hidden_size")] {
        if whole % heads != 0 {
            return Err(fields.wrong("num_attention_heads", &format!("a divisor of {name} = {whole}")));
        }
    }
    if !(query_key_dim / heads).is_multiple_of(2) {
        let expected = format!("an even width for each of {heads} heads, whose pairs are rotated");
        return Err(fields.wrong("query_key_dim", &expected));
    }
    let num_hidden_layers = fields.layers()?;
    // Layer 0 has gates in the file that are not used; any other layer's have the right width.
    let layer = usize::from(num_hidden_layers > 1);
    let width = |gate: &str, field: &str| gate_width(fields, hidden_size, gate, field, layer, shape);
    Ok(DenseRetNet {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        num_hidden_layers,
        num_attention_heads: heads,
        query_key_dim,
        value_dim,
        k_gate: width("k_select", "intermediate_k_select_scale")?,
        v_gate: width("v_select", "intermediate_v_select_scale")?,
        rms_norm_eps: fields.epsilon("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
        dense_block_layers: fields.count("dense_block_layers")?,
    })
}

/// The middle width of a gate's perceptron: the tensor's if there is one, which the configuration may not contradict.
fn gate_width(
    fields: &Fields<'_>,
    hidden_size: usize,
    gate: &str,
    field: &str,
    layer: usize,
    shape: Shapes<'_, '_>,
) -> Result<usize, Error> {
    let stated = fields.has(field).then(|| fields.size(field)).transpose()?.map(|reduction| hidden_size / reduction);
    let tensor = format!("model.layers.{layer}.self_attn.{gate}.fc1.weight");
    // A tensor of another rank is reported when the tensors are accounted for, whatever width is assumed here.
    let found = match shape(&tensor) {
        Some(&[width, _]) if (1..=LARGEST).contains(&(width as u64)) => Some(width),
        _ => None,
    };
    match (stated, found) {
        (Some(stated), Some(found)) if stated != found => {
            let expected = format!("a reduction of hidden_size {hidden_size} to {found}, as {tensor} has it");
            Err(fields.wrong(field, &expected))
        }
        (_, Some(found)) => Ok(found),
        // The reference repository's layout, which does not say it, reduces by 32.
        (stated, None) => Ok(stated.unwrap_or(hidden_size / 32).max(1)),
    }
}

/// The buffers of the rotation, the gates and norms of layer 0, and all gates where there are no neighbours.
pub(super) fn ignorable(m: &DenseRetNet, name: &str) -> bool {
    let buffer = matches!(name, "model.retnet_rel_pos.angle" | "model.retnet_rel_pos.decay");
    let unused = in_layer(name, "model.layers.", ".self_attn.").is_some_and(|(layer, tensor)| {
        let gate = tensor.starts_with("k_select.") || tensor.starts_with("v_select.");
        let norm = tensor == "k_norm.weight" || tensor == "v_norm.weight";
        layer < m.num_hidden_layers && (layer == 0 && (gate || norm) || m.dense_block_layers == 0 && gate)
    });
    buffer || unused
}
