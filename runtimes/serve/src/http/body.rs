//! The body of a request: read within a size and a time, and parsed.

use super::{Shared, error::ApiError};
use axum::{body::Body, http::StatusCode};
use serde::de::DeserializeOwned;

/// Reads a body of at most that many bytes.
pub(super) async fn bytes(shared: &Shared, body: Body, limit: usize) -> Result<axum::body::Bytes, ApiError> {
    let time = shared.options.body_time;
    match tokio::time::timeout(time, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            if cause.contains("limit") {
                let message = format!("body: expected at most {limit} bytes");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Err(ApiError::bad_request(format!("body: {cause}")))
        }
        Err(_) => {
            let message = format!("body: expected it within {} seconds", time.as_secs_f64());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Reads a body of JSON. A field that the type does not have is an error that names it.
pub(super) async fn parse<T: DeserializeOwned>(shared: &Shared, body: Body) -> Result<T, ApiError> {
    let bytes = bytes(shared, body, shared.options.body_bytes).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::bad_request(error.to_string()))
}
