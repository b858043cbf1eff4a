//! Every tensor accounted for: what the model asks for is there, in its shape, and what is there is asked for.

use crate::{Checkpoint, Error};
use densessm_proto::Architecture;
use std::collections::BTreeSet;

impl Checkpoint {
    /// Compares the tensors with those that a model declares, by name and shape.
    ///
    /// Tensors that the models' own code writes and never uses may be there.
    ///
    /// # Errors
    /// Naming every tensor that is missing, unknown or of another shape.
    pub fn account<'a>(&self, declared: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        for (name, shape) in declared {
            known.insert(name);
            match self.tensor(name) {
                None => problems.push(format!("{name}: missing, expected {shape:?}")),
                Some(tensor) if tensor.shape != shape => {
                    let file = self.file(tensor).file_name().unwrap_or_default().display();
                    problems.push(format!("{name}: expected {shape:?}, got {:?} in {file}", tensor.shape));
                }
                Some(_) => {}
            }
        }
        for tensor in self.tensors().filter(|tensor| !known.contains(tensor.name.as_str())) {
            if !ignorable(self.architecture(), &tensor.name) {
                let file = self.file(tensor).file_name().unwrap_or_default().display();
                problems.push(format!("{}: {:?} in {file} is no tensor of this model", tensor.name, tensor.shape));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { path: self.dir.clone(), problems }) }
    }
}

/// Whether a model's own code writes this tensor and never reads it.
fn ignorable(architecture: &Architecture, name: &str) -> bool {
    match architecture {
        Architecture::DenseRetNet(m) => {
            let buffer = matches!(name, "model.retnet_rel_pos.angle" | "model.retnet_rel_pos.decay");
            let unused = in_layer(name, "model.layers.", ".self_attn.").is_some_and(|(layer, tensor)| {
                let gate = tensor.starts_with("k_select.") || tensor.starts_with("v_select.");
                let norm = tensor == "k_norm.weight" || tensor == "v_norm.weight";
                layer < m.num_hidden_layers && (layer == 0 && (gate || norm) || m.dense_block_layers == 0 && gate)
            });
            buffer || unused || m.tie_word_embeddings && name == "lm_head.weight"
        }
        Architecture::DenseMamba(m) => {
            // Projections of neighbours that the first layers do not have.
            let unused =
                in_layer(name, "backbone.layers.", ".mixer.dense.projections.").is_some_and(|(layer, tensor)| {
                    let neighbour = tensor.strip_suffix(".weight").and_then(|index| index.parse::<usize>().ok());
                    (1..m.num_hidden_layers).contains(&layer)
                        && neighbour.is_some_and(|neighbour| (layer..m.dense_block_layers).contains(&neighbour))
                });
            unused || m.tie_word_embeddings && name == "lm_head.weight"
        }
    }
}

/// The layer of a name and what follows the module in it.
fn in_layer<'a>(name: &'a str, layers: &str, module: &str) -> Option<(usize, &'a str)> {
    let (layer, tensor) = name.strip_prefix(layers)?.split_once(module)?;
    Some((layer.parse().ok()?, tensor))
}
