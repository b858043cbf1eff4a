//! `generation_config.json`: what a checkpoint says about generating from it.
//!
//! Its end-of-sequence tokens always apply. Its sampling fields apply only where the caller asks for them, so that the
//! same command gives the same text whatever a checkpoint's author preferred.

use crate::{Error, GenerateOptions, Sampling, tokenizer::read_json};
use serde::Deserialize;
use std::path::Path;

const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const MODEL_CONFIG_FILE: &str = "config.json";

/// What a bundle says about generation.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Tokens that end a sequence.
    pub eos: Vec<u32>,
    /// The token that begins one. The tokenizer decides whether it is added.
    pub bos: Option<u32>,
    /// How the checkpoint's author would sample (`do_sample`, `temperature`, `top_k`, `top_p`), with seed 0; greedy if
    /// `do_sample` is absent or false.
    pub sampling: Sampling,
}

#[derive(Default, Deserialize)]
struct TokenIds {
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
}

#[derive(Default, Deserialize)]
struct Fields {
    #[serde(flatten)]
    ids: TokenIds,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a token id or a list of them as `eos_token_id`")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a bundle or a checkpoint. Without that file, the token ids of `config.json`
    /// apply; without either, nothing ends a sequence but the caller.
    ///
    /// # Errors
    /// When a file is damaged, or its sampling fields are out of range.
    pub fn open(bundle: impl AsRef<Path>) -> Result<Self, Error> {
        let path = bundle.as_ref().join(GENERATION_CONFIG_FILE);
        let fields = match read_json(&path)? {
            Some(fields) => fields,
            None => {
                let ids = read_json(&bundle.as_ref().join(MODEL_CONFIG_FILE))?;
                Fields { ids: ids.unwrap_or_default(), ..Fields::default() }
            }
        };
        let eos = match fields.ids.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        };
        let sampling = if fields.do_sample == Some(true) {
            Sampling {
                temperature: fields.temperature.unwrap_or(1.0),
                top_k: fields.top_k.unwrap_or(0),
                top_p: fields.top_p.unwrap_or(1.0),
                seed: 0,
            }
        } else {
            Sampling::GREEDY
        };
        sampling.check().map_err(|error| Error::File { path, problem: error.to_string() })?;
        Ok(Self { eos, bos: fields.ids.bos_token_id, sampling })
    }

    /// Returns options that end a sequence at this bundle's end-of-sequence tokens, and are greedy.
    pub fn options(&self) -> GenerateOptions {
        GenerateOptions::default().with_eos(self.eos.as_slice())
    }
}
