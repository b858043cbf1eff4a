//! States over HTTP: one file, in the format of `generate --save-state`.

use super::{
    Shared, body,
    error::{ApiError, json},
    submit::blocking,
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use densessm_session::Snapshot;
use serde_json::json as object;
use std::sync::Arc;

/// What a file of states holds besides the numbers: names, shapes and pending tokens.
const HEADER_BYTES: usize = 1 << 20;

/// Loads a file of states and answers with the name under which the sequence is kept.
pub(super) async fn load(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, ApiError> {
    let state = usize::try_from(shared.scheduler.bundle().manifest().state_bytes_per_sequence).unwrap_or(usize::MAX);
    let limit = shared.options.body_bytes.saturating_add(state).saturating_add(HEADER_BYTES);
    let bytes = body::bytes(&shared, body, limit).await?;
    blocking(move || {
        let file = temporary()?;
        std::fs::write(file.path(), &bytes).map_err(server)?;
        let snapshot = Snapshot::load(file.path()).map_err(|error| {
            let path = format!("{}: ", file.path().display());
            ApiError::bad_request(format!("states: {}", error.to_string().trim_start_matches(&path)))
        })?;
        let info = shared.scheduler.load(snapshot)?;
        let (consumed, pending) = (info.consumed, info.pending);
        Ok(json(&object!({
            "id": info.id, "object": "state", "consumed_tokens": consumed, "pending_tokens": pending,
        })))
    })
    .await
}

/// Answers with the file of a sequence that is kept under a name.
pub(super) async fn fetch(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    blocking(move || {
        let snapshot = shared.scheduler.fetch(&id)?;
        let file = temporary()?;
        snapshot.save(file.path()).map_err(server)?;
        let bytes = std::fs::read(file.path()).map_err(server)?;
        Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
    })
    .await
}

/// Drops a sequence that is kept under a name.
pub(super) async fn forget(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    blocking(move || {
        shared.scheduler.forget(&id)?;
        Ok(json(&object!({"id": id, "object": "state", "deleted": true})))
    })
    .await
}

fn temporary() -> Result<tempfile::NamedTempFile, ApiError> {
    tempfile::NamedTempFile::new().map_err(server)
}

fn server(error: impl std::fmt::Display) -> ApiError {
    crate::Failure::Runtime(format!("temporary file of states: {error}")).into()
}
