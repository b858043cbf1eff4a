//! Compares a checkpoint's tensors with those that a model declares.

use crate::{Checkpoint, Error, Tensor, families};
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
            if tensor.name == "lm_head.weight" && architecture.family().tie_word_embeddings() {
                if tensor.shape != head {
                    problems.push(self.misshapen(tensor, &head));
                }
            } else if !families::ignorable(architecture, &tensor.name) {
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
