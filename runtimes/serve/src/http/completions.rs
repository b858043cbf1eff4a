//! `/v1/completions` and `/v1/chat/completions`.

use super::{
    Shared, body,
    error::{ApiError, json},
    parameters::{Chat, Common, Completions, Prompts},
    reply::{Echo, Head, Interface, Reply},
    seconds, stream,
    submit::{blocking, submit},
};
use crate::{Failure, Request};
use axum::{body::Body, extract::State, response::Response};
use densessm_generate::{TextPosition, Tokenizer};
use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Answers after one or more prompts.
pub(super) async fn completions(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let body: Completions = body::parse(&shared, body).await?;
    let common = body.common(&shared)?;
    let prepared = Arc::clone(&shared);
    let (common, requests, echo) = blocking(move || {
        let (requests, echo) = prepare(&prepared, body, &common)?;
        Ok((common, requests, echo))
    })
    .await?;
    answer(&shared, &common, Interface::Completions, requests, echo).await
}

/// Answers the last message of a chat.
pub(super) async fn chat_completions(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let body: Chat = body::parse(&shared, body).await?;
    let common = body.common(&shared)?;
    let prepared = Arc::clone(&shared);
    let (common, request) = blocking(move || {
        let Some(template) = &prepared.template else {
            let message = "this model has no chat template; use /v1/completions".to_owned();
            return Err(ApiError::field("messages", message));
        };
        let text = template.render(&body.messages).map_err(|problem| ApiError::field("messages", problem))?;
        let tokenizer = prepared.scheduler.tokenizer();
        let mut tokens = encode(tokenizer, &text, TextPosition::Start)?;
        // The template writes the tokens that begin a sequence itself.
        tokens.drain(..tokenizer.beginning().len());
        let request = Request::new(tokens, common.options.clone());
        Ok((common, request))
    })
    .await?;
    let request = common.apply(&shared, request);
    answer(&shared, &common, Interface::Chat, vec![request], Vec::new()).await
}

async fn answer(
    shared: &Arc<Shared>,
    common: &Common,
    interface: Interface,
    requests: Vec<Request>,
    echo: Vec<Echo>,
) -> Result<Response, ApiError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = match interface {
        Interface::Completions => "cmpl",
        Interface::Chat => "chatcmpl",
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let head = Head {
        id: format!("{prefix}-{:016x}", std::hash::RandomState::new().hash_one(number)),
        created: seconds(),
        model: shared.options.model.clone(),
        interface,
        logprobs: common.logprobs.is_some(),
        choices: common.choices,
    };
    let mut reply = Reply::new(head, shared.scheduler.tokenizer().clone(), requests.len(), echo);
    let mut receiver = submit(shared, requests)?;
    if common.stream {
        return Ok(stream::respond(receiver, reply, common.include_usage));
    }
    while !reply.is_complete() {
        let (prompt, event) = receiver.recv().await.ok_or(Failure::Stopping)?;
        reply.take(prompt, event)?;
    }
    blocking(move || Ok(json(&reply.whole()))).await
}

/// The requests of a body, one per prompt, and what is returned in front of their text.
fn prepare(shared: &Shared, body: Completions, common: &Common) -> Result<(Vec<Request>, Vec<Echo>), ApiError> {
    let tokenizer = shared.scheduler.tokenizer();
    let echo = body.echo.unwrap_or(false);
    let position = if body.state.is_some() { TextPosition::After } else { TextPosition::Start };
    let prompts: Vec<(Vec<u32>, Option<String>)> = match body.prompt {
        None if body.state.is_some() => vec![(Vec::new(), None)],
        None => return Err(ApiError::field("prompt", "missing".to_owned())),
        Some(Prompts::Text(text)) => vec![(encode(tokenizer, &text, position)?, Some(text))],
        Some(Prompts::Tokens(tokens)) => vec![(tokens, None)],
        Some(Prompts::ManyTokens(prompts)) => prompts.into_iter().map(|tokens| (tokens, None)).collect(),
        Some(Prompts::Texts(texts)) => texts
            .into_iter()
            .map(|text| Ok((encode(tokenizer, &text, position)?, Some(text))))
            .collect::<Result<_, ApiError>>()?,
    };
    let limit = shared.scheduler.options().queue;
    if prompts.is_empty() || prompts.len() > limit {
        return Err(ApiError::field("prompt", format!("expected 1 to {limit} prompts, got {}", prompts.len())));
    }
    if echo && body.state.is_some() {
        return Err(ApiError::field("echo", "expected false with a saved state, whose text is not kept".to_owned()));
    }
    let (mut requests, mut echoes) = (Vec::new(), Vec::new());
    for (tokens, text) in prompts {
        if echo {
            let &first = tokens.first().ok_or_else(|| ApiError::field("prompt", "expected a token".to_owned()))?;
            let decoded = || tokenizer.decode(&tokens).map_err(|error| ApiError::bad_request(error.to_string()));
            echoes.push(Echo { text: text.map_or_else(decoded, Ok)?, first });
        }
        let request = match &body.state {
            Some(id) => Request::resume(id, tokens, common.options.clone()),
            None => Request::new(tokens, common.options.clone()),
        };
        let request = common.apply(shared, request);
        let (prompt_logprobs, save) = (echo && common.logprobs.is_some(), body.save_state.unwrap_or(false));
        requests.push(Request { prompt_logprobs, save, ..request });
    }
    Ok((requests, echoes))
}

fn encode(tokenizer: &Tokenizer, text: &str, position: TextPosition) -> Result<Vec<u32>, ApiError> {
    tokenizer.encode(text, position).map_err(|error| ApiError::bad_request(error.to_string()))
}
