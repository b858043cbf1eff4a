//! What the configurations of Mamba's relatives have in common.

use crate::{Error, config::Fields};

/// D: `expand · hidden_size`, which the file may state as `intermediate_size`, too.
pub(super) fn intermediate_size(fields: &Fields<'_>, hidden_size: usize) -> Result<usize, Error> {
    let stated = fields.has("intermediate_size").then(|| fields.size("intermediate_size")).transpose()?;
    if let (false, Some(stated)) = (fields.has("expand"), stated) {
        return Ok(stated);
    }
    let expanded = fields.multiple_or("expand", 2, hidden_size)?;
    match stated {
        Some(stated) if stated != expanded => {
            Err(fields.wrong("intermediate_size", &format!("expand · hidden_size = {expanded}")))
        }
        _ => Ok(expanded),
    }
}

/// R: `time_step_rank`, or `hidden_size / 16` rounded up where it is `"auto"` or left out.
pub(super) fn time_step_rank(fields: &Fields<'_>, hidden_size: usize) -> Result<usize, Error> {
    if !fields.has("time_step_rank") || fields.text("time_step_rank") == Some("auto") {
        return Ok(hidden_size.div_ceil(16));
    }
    fields.size("time_step_rank")
}
