//! `config.json`: which model it is and its dimensions, checked against reason and against the tensors.

use crate::Error;
use densessm_proto::{Architecture, DenseMamba, DenseRetNet, Projection};
use serde_json::Value;

/// Beyond this a size is a mistake: no model comes near, and the product of two counts bytes without overflow.
const LARGEST: u64 = 1 << 24;
/// Beyond this a number of layers is a mistake. It is small, for graphs and lists of tensors grow with it.
const MOST_LAYERS: u64 = 1 << 10;

/// The architecture that a configuration describes.
///
/// `shape` gives a tensor's shape, where the weights are known: widths that a configuration leaves out are taken from
/// there, and those that it states are compared.
///
/// # Errors
/// Naming the field that is missing, nonsense, not supported, or contradicted by a tensor.
pub fn parse<'a>(config: &Value, shape: &dyn Fn(&str) -> Option<&'a [usize]>) -> Result<Architecture, Error> {
    if !config.is_object() {
        return Err(Error::config("top level", "expected an object"));
    }
    let fields = Fields { config };
    let is_retnet = ["query_key_dim", "v_factor", "dense_block_layers"].iter().all(|name| config.get(name).is_some());
    if is_retnet {
        return dense_retnet(&fields, shape).map(Architecture::DenseRetNet);
    }
    match config.get("model_type").and_then(Value::as_str) {
        Some("mamba") => dense_mamba(&fields, true).map(Architecture::DenseMamba),
        Some("dense_mamba") => dense_mamba(&fields, false).map(Architecture::DenseMamba),
        other => {
            // Half of what makes a DenseRetNet is a mistake in one.
            if fields.config.get("query_key_dim").or(fields.config.get("v_factor")).is_some() {
                return dense_retnet(&fields, shape).map(Architecture::DenseRetNet);
            }
            let expected = "expected dense_mamba, mamba, or the fields of DenseRetNet (query_key_dim, v_factor, dense_block_layers)";
            let got = other.map_or("none of them".to_owned(), |name| format!("{name:?}"));
            Err(Error::config("model_type", format!("{expected}, got {got}")))
        }
    }
}

fn dense_mamba(fields: &Fields<'_>, plain: bool) -> Result<DenseMamba, Error> {
    fields.require_silu()?;
    let hidden_size = fields.size("hidden_size")?;
    let intermediate_size = intermediate_size(fields, hidden_size)?;
    let time_step_rank = match fields.config.get("time_step_rank") {
        None => hidden_size.div_ceil(16),
        Some(Value::String(auto)) if auto == "auto" => hidden_size.div_ceil(16),
        Some(_) => fields.size("time_step_rank")?,
    };
    let dense_block_layers = if plain { 0 } else { fields.count_or("dense_block_layers", 2)? };
    let middle = match fields.config.get("dense_gate_reduction") {
        None => hidden_size / 16,
        Some(_) => hidden_size / fields.size("dense_gate_reduction")?,
    };
    let (channel, state) = gates(fields)?;
    let gate = |exists: bool| (exists && dense_block_layers > 0).then_some(middle.max(1));
    Ok(DenseMamba {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        num_hidden_layers: fields.layers()?,
        intermediate_size,
        state_size: fields.size_or("state_size", 16)?,
        conv_kernel: fields.size_or("conv_kernel", 4)?,
        time_step_rank,
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

/// `expand · hidden_size`, which the file may state, too.
fn intermediate_size(fields: &Fields<'_>, hidden_size: usize) -> Result<usize, Error> {
    let stated = fields.config.get("intermediate_size").map(|_| fields.size("intermediate_size")).transpose()?;
    let expanded = match (fields.config.get("expand"), stated) {
        (None, Some(stated)) => return Ok(stated),
        _ => fields.size_or("expand", 2)?.checked_mul(hidden_size).filter(|&size| size as u64 <= LARGEST),
    };
    let expanded = expanded.ok_or_else(|| fields.wrong("expand", "a factor of reasonable size"))?;
    match stated {
        Some(stated) if stated != expanded => {
            Err(fields.wrong("intermediate_size", &format!("expand · hidden_size = {expanded}")))
        }
        _ => Ok(expanded),
    }
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

fn dense_retnet<'a>(fields: &Fields<'_>, shape: &dyn Fn(&str) -> Option<&'a [usize]>) -> Result<DenseRetNet, Error> {
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
    let v_factor = fields.size("v_factor")?;
    let value_dim = v_factor.checked_mul(hidden_size).filter(|&size| size as u64 <= LARGEST);
    let value_dim = value_dim.ok_or_else(|| fields.wrong("v_factor", "a factor of reasonable size"))?;
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
    // Layer 0 has gates in the file that are not used; any layer's will do for their width.
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
fn gate_width<'a>(
    fields: &Fields<'_>,
    hidden_size: usize,
    gate: &str,
    field: &str,
    layer: usize,
    shape: &dyn Fn(&str) -> Option<&'a [usize]>,
) -> Result<usize, Error> {
    let stated = match fields.config.get(field) {
        None => None,
        Some(_) => Some(hidden_size / fields.size(field)?),
    };
    let tensor = format!("model.layers.{layer}.self_attn.{gate}.fc1.weight");
    // A tensor of another form is misshapen, whatever the width: accounting for the tensors says so.
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

/// Typed access to the fields of a configuration.
struct Fields<'c> {
    config: &'c Value,
}

impl Fields<'_> {
    fn wrong(&self, field: &str, expected: &str) -> Error {
        let got = self.config.get(field).map_or("nothing".to_owned(), Value::to_string);
        Error::config(field, format!("expected {expected}, got {got}"))
    }

    /// A whole number from `least` to `most`.
    fn whole(&self, field: &str, least: u64, most: u64) -> Result<usize, Error> {
        match self.config.get(field).and_then(Value::as_u64) {
            Some(number) if (least..=most).contains(&number) => Ok(number as usize),
            _ => Err(self.wrong(field, &format!("a whole number from {least} to {most}"))),
        }
    }

    fn size(&self, field: &str) -> Result<usize, Error> {
        self.whole(field, 1, LARGEST)
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, Error> {
        self.config.get(field).map_or(Ok(default), |_| self.size(field))
    }

    fn layers(&self) -> Result<usize, Error> {
        self.whole("num_hidden_layers", 1, MOST_LAYERS)
    }

    fn count(&self, field: &str) -> Result<usize, Error> {
        self.whole(field, 0, LARGEST)
    }

    fn count_or(&self, field: &str, default: usize) -> Result<usize, Error> {
        self.config.get(field).map_or(Ok(default), |_| self.count(field))
    }

    fn flag_or(&self, field: &str, default: bool) -> Result<bool, Error> {
        match self.config.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    fn epsilon(&self, field: &str, default: f64) -> Result<f64, Error> {
        match self.config.get(field).map(Value::as_f64) {
            None => Ok(default),
            Some(Some(epsilon)) if epsilon as f32 > 0.0 && epsilon < 1.0 => Ok(epsilon),
            Some(_) => Err(self.wrong(field, "a small positive number")),
        }
    }

    fn require_silu(&self) -> Result<(), Error> {
        match self.config.get("hidden_act").map(Value::as_str) {
            None | Some(Some("silu" | "swish")) => Ok(()),
            Some(_) => Err(self.wrong("hidden_act", "\"silu\"")),
        }
    }
}
