//! The model families: which one a configuration describes, and where its equations are.

use crate::{Error, Real, State, Tensors, dense_mamba, dense_retnet, falcon_mamba, mamba, trace::ChunkTrace};
use ndarray::Array2;
use serde_json::Value;

/// A model of one of the families.
#[derive(Clone, Debug)]
pub(crate) enum Family {
    DenseMamba(dense_mamba::Config),
    DenseRetNet(dense_retnet::Config),
    FalconMamba(falcon_mamba::Config),
}

/// What every family has.
#[derive(Clone, Debug)]
pub(crate) struct Properties {
    /// V: size of the vocabulary.
    pub(crate) vocabulary: usize,
    /// Names and shapes of the states.
    pub(crate) states: Vec<(String, Vec<usize>)>,
    /// Tokens that the parallel form computes at once.
    pub(crate) chunk: usize,
}

impl Family {
    /// The model that a configuration and its tensors describe.
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        // Published DenseRetNets have `llama` in `model_type`.
        if dense_retnet::OWN_FIELDS.iter().all(|field| config.get(field).is_some()) {
            return dense_retnet::Config::new(config, weights).map(Self::DenseRetNet);
        }
        match config["model_type"].as_str() {
            Some("mamba" | "dense_mamba") => dense_mamba::Config::new(config, weights).map(Self::DenseMamba),
            Some("falcon_mamba") => falcon_mamba::Config::new(config, weights).map(Self::FalconMamba),
            _ => {
                let expected = "mamba, dense_mamba, falcon_mamba or a DenseRetNet";
                let problem = format!("expected {expected}, got {}", config["model_type"]);
                Err(Error::new("config.json: model_type", problem))
            }
        }
    }

    /// What the driver needs to know of the model.
    pub(crate) fn properties(&self) -> Properties {
        match self {
            Self::DenseMamba(model) => mamba_properties(&model.mamba),
            Self::FalconMamba(model) => mamba_properties(&model.mamba),
            Self::DenseRetNet(model) => {
                Properties { vocabulary: model.vocabulary, states: model.states(), chunk: dense_retnet::CHUNK }
            }
        }
    }

    /// Logits of a chunk, `[tokens] -> [tokens, V]`; moves the states on.
    pub(crate) fn chunk<F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        match self {
            Self::DenseMamba(model) => model.chunk(w, tokens, state, seen),
            Self::DenseRetNet(model) => model.chunk(w, tokens, state, seen),
            Self::FalconMamba(model) => model.chunk(w, tokens, state, seen),
        }
    }
}

fn mamba_properties(mamba: &mamba::Dimensions) -> Properties {
    Properties { vocabulary: mamba.vocabulary, states: mamba.states(), chunk: mamba::CHUNK }
}
