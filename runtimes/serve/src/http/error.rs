//! Errors in OpenAI's shape, and JSON responses.

use crate::{Failure, Refusal};
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json as object};

/// An error as clients of OpenAI's interface expect it.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: String) -> Self {
        Self { status, message, param: None, code: None }
    }

    /// A request that is wrong in one of its fields.
    pub(super) fn field(param: &str, message: String) -> Self {
        let message = format!("{param}: {message}");
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(super) fn bad_request(message: String) -> Self {
        // What `serde` says of an unknown field begins so.
        let param = message.strip_prefix("unknown field `").and_then(|rest| Some(rest.split_once('`')?.0.to_owned()));
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(super) fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn unknown_model(got: &str, expected: &str) -> Self {
        let message = format!("model: expected `{expected}`, got `{got}`");
        Self { param: Some("model".to_owned()), code: Some("model_not_found"), ..Self::not_found(message) }
    }

    pub(super) fn unauthorized() -> Self {
        let message = "api key: expected the server's key as `Authorization: Bearer KEY`".to_owned();
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// The JSON of the error, also as an event of a stream.
    pub(super) fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        object!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let (status, param, code) = match refusal {
            Refusal::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, None, Some("queue_full")),
            Refusal::Stopping => (StatusCode::SERVICE_UNAVAILABLE, None, Some("stopping")),
            Refusal::PromptTooLong { .. } => (StatusCode::BAD_REQUEST, Some("prompt"), Some("context_length_exceeded")),
            Refusal::TooManyNewTokens { .. } => (StatusCode::BAD_REQUEST, Some("max_tokens"), None),
            Refusal::Choices { .. } => (StatusCode::BAD_REQUEST, Some("n"), None),
            Refusal::Token { .. } => (StatusCode::BAD_REQUEST, Some("prompt"), None),
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, None, None),
        };
        Self { status, message, param: param.map(str::to_owned), code }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let (status, code) = match failure {
            Failure::TimedOut => (StatusCode::GATEWAY_TIMEOUT, Some("timeout")),
            Failure::Stopping => (StatusCode::SERVICE_UNAVAILABLE, Some("stopping")),
            Failure::UnknownState(_) => (StatusCode::NOT_FOUND, Some("state_not_found")),
            Failure::Invalid(_) => (StatusCode::BAD_REQUEST, None),
            Failure::Runtime(_) => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        Self { code, ..Self::new(status, failure.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, json(&self.body())).into_response()
    }
}

/// A response of JSON.
pub(super) fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
