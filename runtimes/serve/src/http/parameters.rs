//! The fields of OpenAI's requests, and what they mean for a generation.
//!
//! Every field that is not listed is refused by name. Fields that are listed and not supported are accepted with the
//! value that asks for nothing.

use super::{Shared, error::ApiError};
use crate::Request;
use densessm_generate::{GenerateOptions, Sampling};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, hash::BuildHasher};

/// The most alternatives that OpenAI's interface returns for one token.
const MOST_ALTERNATIVES: usize = 20;
/// What OpenAI's legacy interface generates when it is not told how much.
const LEGACY_MAX_TOKENS: usize = 16;

/// A value or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, a list of strings, a list of token ids or a list of such lists")]
pub(super) enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// The body of `/v1/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Completions {
    pub(super) model: Option<String>,
    pub(super) prompt: Option<Prompts>,
    pub(super) max_tokens: Option<usize>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) n: Option<usize>,
    pub(super) best_of: Option<usize>,
    pub(super) stop: Option<Texts>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) logprobs: Option<usize>,
    pub(super) echo: Option<bool>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) logit_bias: Option<BTreeMap<String, Value>>,
    pub(super) suffix: Option<String>,
    #[serde(rename = "user")]
    pub(super) _user: Option<String>,
    /// The name of a saved sequence that the prompt continues.
    pub(super) state: Option<String>,
    /// Whether the sequence is kept under a name.
    pub(super) save_state: Option<bool>,
    /// Whether cached states are used and kept.
    pub(super) cache_prompt: Option<bool>,
}

/// The body of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chat {
    pub(super) model: Option<String>,
    pub(super) messages: Vec<Message>,
    pub(super) max_tokens: Option<usize>,
    pub(super) max_completion_tokens: Option<usize>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) n: Option<usize>,
    pub(super) stop: Option<Texts>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<usize>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) logit_bias: Option<BTreeMap<String, Value>>,
    #[serde(rename = "user")]
    pub(super) _user: Option<String>,
    pub(super) cache_prompt: Option<bool>,
}

/// A message of a chat.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: Content,
    pub(super) name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts of type `text` as `content`")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Part {
    Text { text: String },
}

impl Content {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().map(|Part::Text { text }| text.as_str()).collect(),
        }
    }
}

/// What both interfaces share, and what does not depend on the prompt.
pub(super) struct Common {
    pub(super) options: GenerateOptions,
    pub(super) choices: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) cache: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Common {
    /// Sets the options of a request that do not depend on its prompt.
    pub(super) fn apply(&self, shared: &Shared, request: Request) -> Request {
        let timeout = shared.options.request_time;
        Request { choices: self.choices, logprobs: self.logprobs, cache: self.cache, timeout, ..request }
    }
}

impl Completions {
    pub(super) fn common(&self, shared: &Shared) -> Result<Common, ApiError> {
        check_model(self.model.as_deref(), shared)?;
        check_unsupported(self.presence_penalty, self.frequency_penalty, self.logit_bias.as_ref())?;
        let choices = self.n.unwrap_or(1);
        if self.best_of.is_some_and(|best_of| best_of != choices) {
            return Err(ApiError::field("best_of", format!("expected the value of n, {choices}, or none")));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "expected none; text cannot be inserted".to_owned()));
        }
        let sampling = sampling(self.temperature, self.top_p, self.top_k, self.seed)?;
        let max_tokens = self.max_tokens.unwrap_or(LEGACY_MAX_TOKENS.min(shared.scheduler.options().max_new_tokens));
        Ok(Common {
            options: options(shared, max_tokens, sampling, self.stop.as_ref()),
            choices,
            logprobs: self.logprobs.map(alternatives("logprobs")).transpose()?,
            cache: self.cache_prompt.unwrap_or(true),
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.as_ref().is_some_and(|options| options.include_usage),
        })
    }
}

impl Chat {
    pub(super) fn common(&self, shared: &Shared) -> Result<Common, ApiError> {
        check_model(self.model.as_deref(), shared)?;
        check_unsupported(self.presence_penalty, self.frequency_penalty, self.logit_bias.as_ref())?;
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ApiError::field("top_logprobs", "expected logprobs to be true as well".to_owned()));
        }
        let sampling = sampling(self.temperature, self.top_p, self.top_k, self.seed)?;
        let given = self.max_completion_tokens.or(self.max_tokens);
        let max_tokens = given.unwrap_or(shared.scheduler.options().max_new_tokens);
        let wanted = (self.logprobs == Some(true)).then(|| self.top_logprobs.unwrap_or(0));
        Ok(Common {
            options: options(shared, max_tokens, sampling, self.stop.as_ref()),
            choices: self.n.unwrap_or(1),
            logprobs: wanted.map(alternatives("top_logprobs")).transpose()?,
            cache: self.cache_prompt.unwrap_or(true),
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.as_ref().is_some_and(|options| options.include_usage),
        })
    }
}

pub(super) fn check_model(model: Option<&str>, shared: &Shared) -> Result<(), ApiError> {
    match model {
        Some(model) if model != shared.options.model => Err(ApiError::unknown_model(model, &shared.options.model)),
        _ => Ok(()),
    }
}

fn check_unsupported(
    presence: Option<f64>,
    frequency: Option<f64>,
    bias: Option<&BTreeMap<String, Value>>,
) -> Result<(), ApiError> {
    for (name, penalty) in [("presence_penalty", presence), ("frequency_penalty", frequency)] {
        if let Some(penalty) = penalty.filter(|&penalty| penalty != 0.0) {
            return Err(ApiError::field(name, format!("expected 0, which is all that is supported, got {penalty}")));
        }
    }
    match bias {
        Some(bias) if !bias.is_empty() => {
            Err(ApiError::field("logit_bias", "expected none, which is all that is supported".to_owned()))
        }
        _ => Ok(()),
    }
}

fn alternatives(name: &'static str) -> impl Fn(usize) -> Result<usize, ApiError> {
    move |count| match count {
        0..=MOST_ALTERNATIVES => Ok(count),
        _ => Err(ApiError::field(name, format!("expected at most {MOST_ALTERNATIVES}, got {count}"))),
    }
}

/// OpenAI's defaults: temperature 1, and a seed of the server's own.
fn sampling(
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    seed: Option<i64>,
) -> Result<Sampling, ApiError> {
    // -1 and 0 both stand for no limit in other servers.
    let top_k = match top_k.unwrap_or(0) {
        -1 => 0,
        top_k => usize::try_from(top_k)
            .map_err(|_| ApiError::field("top_k", format!("expected -1 or a number of at least 0, got {top_k}")))?,
    };
    let seed = seed.map_or_else(|| std::hash::RandomState::new().hash_one(0), |seed| seed as u64);
    let sampling =
        Sampling::new(temperature.unwrap_or(1.0)).with_top_p(top_p.unwrap_or(1.0)).with_top_k(top_k).with_seed(seed);
    sampling.check().map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(sampling)
}

fn options(shared: &Shared, max_tokens: usize, sampling: Sampling, stop: Option<&Texts>) -> GenerateOptions {
    let stop = match stop {
        None => Vec::new(),
        Some(Texts::One(text)) => vec![text.clone()],
        Some(Texts::Many(texts)) => texts.clone(),
    };
    shared.generation.options().with_max_new_tokens(max_tokens).with_sampling(sampling).with_stop(stop)
}
