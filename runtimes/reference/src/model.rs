//! A checkpoint to compute with.

use crate::{
    Error, HalfType, Observer, Real, State, Tensors,
    family::{Family, Properties},
    trace::ChunkTrace,
};
use ndarray::{Array1, Array2, Axis, concatenate};
use serde_json::Value;
use std::{fs, path::Path};

/// A model straight from its checkpoint.
#[derive(Clone, Debug)]
pub struct Reference {
    family: Family,
    properties: Properties,
    weights: Tensors,
}

impl Reference {
    /// Opens a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// Naming the file, field or tensor that is missing or wrong.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let wrong = |problem: String| Error::new(path.display().to_string(), problem);
        let bytes = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let config = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        Self::new(&config, Tensors::open(folder)?)
    }

    /// A model of this configuration and these tensors.
    ///
    /// # Errors
    /// Naming the field or tensor that is missing or wrong.
    pub fn new(config: &Value, weights: Tensors) -> Result<Self, Error> {
        let family = Family::new(config, &weights)?;
        Ok(Self { properties: family.properties(), family, weights })
    }

    /// The same model with some of its tensors rounded to half precision, to nearest, ties to even: those of which
    /// `stores`, given name and shape, is true.
    #[must_use]
    pub fn rounded(&self, to: HalfType, stores: impl Fn(&str, &[usize]) -> bool) -> Self {
        Self { weights: self.weights.rounded(to, stores), ..self.clone() }
    }

    /// V: size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.properties.vocabulary
    }

    /// The states a sequence starts from: zeros.
    pub fn initial_state<F: Real>(&self) -> State<F> {
        State::zeros(self.properties.states.iter().cloned())
    }

    /// The parallel form: many tokens, in chunks. Returns logits `[tokens, V]` and moves the state on.
    ///
    /// # Panics
    /// When a token is not in the vocabulary.
    pub fn parallel<F: Real>(&self, tokens: &[i64], state: &mut State<F>, trace: &mut dyn Observer<F>) -> Array2<F> {
        let mut first = 0;
        let mut logits = Vec::new();
        for chunk in tokens.chunks(self.properties.chunk) {
            logits.push(self.chunk(chunk, state, &mut ChunkTrace { trace: &mut *trace, first }));
            first += chunk.len();
        }
        let views: Vec<_> = logits.iter().map(|logits| logits.view()).collect();
        concatenate(Axis(0), &views).unwrap_or_else(|_| Array2::zeros((0, self.vocabulary())))
    }

    /// The recurrent form: one token. Returns logits `[V]` and moves the state on.
    ///
    /// # Panics
    /// When the token is not in the vocabulary.
    pub fn recurrent<F: Real>(&self, token: i64, state: &mut State<F>, trace: &mut dyn Observer<F>) -> Array1<F> {
        self.chunk(&[token], state, &mut ChunkTrace { trace, first: 0 }).remove_axis(Axis(0))
    }

    fn chunk<F: Real>(&self, tokens: &[i64], state: &mut State<F>, seen: &mut ChunkTrace<'_, F>) -> Array2<F> {
        let logits = self.family.chunk(&self.weights, tokens, state, seen);
        state.position += tokens.len() as i64;
        seen.see("logits", logits.view());
        logits
    }
}
