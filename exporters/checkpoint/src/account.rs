//! Every tensor accounted for: what the model asks for is there, in its shape and of floats, and what is there is
//! asked for.

use crate::{Checkpoint, DType, Error, Tensor, families};
use std::{collections::BTreeSet, path::Path};

impl Checkpoint {
    /// Compares the tensors with those that a model declares, by name and shape.
    ///
    /// Tensors that the models' own code writes and never uses may be there; the unused head of a tied model then has
    /// the embedding's shape.
    ///
    /// # Errors
    /// Naming every tensor that is missing, unknown, of another shape, or not of floats.
    pub fn account<'a>(&self, declared: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        for (name, shape) in declared {
            known.insert(name);
            match self.tensor(name) {
                None => problems.push(format!("{name}: missing, expected {shape:?}")),
                Some(tensor) if tensor.shape != shape => problems.push(self.misshapen(tensor, shape)),
                Some(tensor) if matches!(tensor.dtype, DType::Other(..)) => {
                    let (dtype, file) = (tensor.dtype, self.file_name(tensor));
                    problems.push(format!("{name}: expected F32, F16, BF16 or F64, got {dtype} in {file}"));
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
                problems.push(format!("{}: {:?} in {file} is no tensor of this model", tensor.name, tensor.shape));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { path: self.dir.clone(), problems }) }
    }

    fn misshapen(&self, tensor: &Tensor, expected: &[usize]) -> String {
        let Tensor { name, shape, .. } = tensor;
        format!("{name}: expected {expected:?}, got {shape:?} in {}", self.file_name(tensor))
    }

    fn file_name(&self, tensor: &Tensor) -> std::path::Display<'_> {
        Path::new(self.file(tensor).file_name().unwrap_or_default()).display()
    }
}
