//! Tokens as text, and `/tokenize` and `/detokenize`.

use super::{
    Shared, body,
    error::{ApiError, json},
    parameters::check_model,
    submit::blocking,
};
use axum::{body::Body, extract::State, response::Response};
use densessm_generate::{TextPosition, Tokenizer};
use serde::Deserialize;
use serde_json::json as object;
use std::sync::Arc;

/// The text of one token after others; a byte that is no character by itself is a replacement character.
pub(super) fn token_text(tokenizer: &Tokenizer, token: u32) -> String {
    let mut stream = tokenizer.stream(TextPosition::After);
    match stream.push(token) {
        Ok(_) => {
            stream.finish();
            stream.text().to_owned()
        }
        Err(_) => String::new(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokenize {
    model: Option<String>,
    prompt: String,
    #[serde(default = "yes")]
    add_special_tokens: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let Tokenize { model, prompt, add_special_tokens } = body::parse(&shared, body).await?;
    check_model(model.as_deref(), &shared)?;
    blocking(move || {
        let tokenizer = shared.scheduler.tokenizer();
        let tokens = tokenizer.encode(&prompt, TextPosition::Start);
        let mut tokens = tokens.map_err(|error| ApiError::bad_request(error.to_string()))?;
        if !add_special_tokens {
            tokens.drain(..tokenizer.beginning().len());
        }
        let max_model_len = shared.scheduler.options().max_prompt_tokens;
        Ok(json(&object!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens})))
    })
    .await
}

pub(super) async fn detokenize(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let Detokenize { model, tokens } = body::parse(&shared, body).await?;
    check_model(model.as_deref(), &shared)?;
    blocking(move || {
        let text = shared.scheduler.tokenizer().decode(&tokens);
        Ok(json(&object!({"prompt": text.map_err(|error| ApiError::bad_request(error.to_string()))?})))
    })
    .await
}
