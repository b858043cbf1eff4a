//! Compares a checkpoint's tensors with those that a model declares.

use crate::{Checkpoint, Error, Tensor};
use densessm_proto::Architecture;
use std::{collections::BTreeSet, path::Path};

impl Checkpoint {
    /// Compares the tensors with those that a model declares, by name and shape.
    ///
    /// Tensors that the models' own code writes and never uses are accepted. The unused head of a tied model must have
    /// the embedding's shape.
    ///
    /// # Errors
    /// When a tensor is missing, unknown, of another shape, or not of floats. All of them are reported at once.
    pub fn account<'a>(&self, declared: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        for (name, shape) in declared {
            known.insert(name);
            match self.tensor(name) {
                None => problems.push(format!("{name}: missing, expected {shape:?}")),
                Some(tensor) if tensor.shape != shape => problems.push(self.misshapen(tensor, shape)),
                Some(tensor) if tensor.dtype.float().is_none() => {
                    let (dtype, file) = (tensor.dtype, self.file_name(tensor));
                    problems.push(format!("{name}: expected fp32, fp16, bf16 or fp64, got {dtype} in {file}"));
                }
                Some(_) => {}
            }
        }
        let architecture = self.architecture();
        let head = [architecture.vocab_size(), architecture.hidden_size()];
        for tensor in self.tensors().filter(|tensor| !known.contains(tensor.name.as_str())) {
            if tensor.name == "lm_head.weight" && tied(architecture) {
                if tensor.shape != head {
                    problems.push(self.misshapen(tensor, &head));
                }
            } else if !ignorable(architecture, &tensor.name) {
                let file = self.file_name(tensor);
                problems.push(format!("{}: {:?} in {file} is not a tensor of this model", tensor.name, tensor.shape));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { path: self.dir().to_owned(), problems }) }
    }

    fn misshapen(&self, tensor: &Tensor, expected: &[usize]) -> String {
        let Tensor { name, shape, .. } = tensor;
        format!("{name}: expected {expected:?}, got {shape:?} in {}", self.file_name(tensor))
    }

    fn file_name(&self, tensor: &Tensor) -> std::path::Display<'_> {
        Path::new(self.file(tensor).file_name().unwrap_or_default()).display()
    }
}

/// Whether the head is the embedding.
fn tied(architecture: &Architecture) -> bool {
    match architecture {
        Architecture::DenseMamba(m) => m.tie_word_embeddings,
        Architecture::DenseRetNet(m) => m.tie_word_embeddings,
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
            buffer || unused
        }
        Architecture::DenseMamba(m) => {
            // Projections of neighbours that the first layers do not have.
            in_layer(name, "backbone.layers.", ".mixer.dense.projections.").is_some_and(|(layer, tensor)| {
                let neighbour = tensor.strip_suffix(".weight").and_then(number);
                (1..m.num_hidden_layers).contains(&layer)
                    && neighbour.is_some_and(|neighbour| (layer..m.dense_block_layers).contains(&neighbour))
            })
        }
    }
}

/// The layer of a name and what follows the module in it.
fn in_layer<'a>(name: &'a str, layers: &str, module: &str) -> Option<(usize, &'a str)> {
    let (layer, tensor) = name.strip_prefix(layers)?.split_once(module)?;
    Some((number(layer)?, tensor))
}

/// A number as it is written in a name: no sign, no leading zero.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}
