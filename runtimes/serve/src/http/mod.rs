//! The scheduler over HTTP, in the shape of OpenAI's interface.
//!
//! [`HttpServer::bind`] opens the port, [`HttpServer::run`] serves it until it is told to stop. Handlers only translate:
//! JSON to a [`Request`](crate::Request), events to JSON. A client that disconnects drops its receiver of events, which
//! cancels its request.

mod body;
mod chat;
mod completions;
mod error;
mod options;
mod parameters;
mod reply;
mod states;
mod stream;
mod submit;
mod tokens;

pub use options::HttpOptions;

use crate::{Log, Scheduler};
use axum::{
    Router,
    extract::{Path, Request as HttpRequest, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use chat::ChatTemplate;
use densessm_generate::GenerationConfig;
use error::{ApiError, json};
use serde_json::json as object;
use sha2::{Digest, Sha256};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often the server looks whether it has to stop.
const POLL: Duration = Duration::from_millis(50);
/// What connections get after the scheduler has ended, to send what they have.
const FLUSH: Duration = Duration::from_secs(5);

/// An open port, and what is served on it.
pub struct HttpServer {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What every handler needs.
pub(crate) struct Shared {
    scheduler: Scheduler,
    options: HttpOptions,
    log: Log,
    generation: GenerationConfig,
    template: Option<ChatTemplate>,
    /// The digest of the API key, so that a comparison takes the same time for every wrong one.
    key: Option<[u8; 32]>,
    created: u64,
}

impl HttpServer {
    /// Opens the port of the options' address; port 0 lets the system choose one.
    ///
    /// # Errors
    /// When the address cannot be used, or the bundle's chat template or generation config is damaged.
    pub fn bind(scheduler: Scheduler, options: HttpOptions, log: Log) -> Result<Self, io::Error> {
        let dir = scheduler.bundle().dir();
        let generation = GenerationConfig::open(dir).map_err(io::Error::other)?;
        let template = ChatTemplate::open(dir).map_err(io::Error::other)?;
        let listener = TcpListener::bind(options.address)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", options.address)))?;
        listener.set_nonblocking(true)?;
        let key = options.api_key.as_deref().map(digest);
        let created = seconds();
        Ok(Self { listener, shared: Arc::new(Shared { scheduler, options, log, generation, template, key, created }) })
    }

    /// Returns the address with the port that was opened.
    ///
    /// # Errors
    /// When the system does not tell it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the flag is set or the process is asked to terminate, then shuts the scheduler down within the
    /// options' deadline.
    ///
    /// # Errors
    /// When the system provides no threads or no signal handler, or the port fails.
    pub fn run(self, stop: Arc<AtomicBool>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(self.serve(stop));
        // A handler that still waits is not waited for.
        runtime.shutdown_background();
        result
    }

    async fn serve(self, stop: Arc<AtomicBool>) -> io::Result<()> {
        let Self { listener, shared } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        watch_terminate(&stop)?;
        let (begun, ended) = tokio::sync::oneshot::channel();
        let (scheduler, deadline) = (shared.scheduler.clone(), shared.options.shutdown);
        let signal = async move {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(POLL).await;
            }
            let draining = tokio::task::spawn_blocking(move || scheduler.shutdown(deadline));
            // The receiver is dropped only with the server.
            let _ = begun.send(draining);
        };
        let log = shared.log.clone();
        let server = axum::serve(listener, router(Arc::clone(&shared))).with_graceful_shutdown(signal);
        let server = tokio::spawn(server.into_future());
        let Ok(draining) = ended.await else {
            return server.await.map_err(io::Error::other)?;
        };
        log.line("stopping", &[("deadline_seconds", &deadline.as_secs_f64())]);
        draining.await.map_err(io::Error::other)?;
        if tokio::time::timeout(FLUSH, server).await.is_err() {
            log.line("stopped", &[("open_connections", &"closed")]);
        }
        Ok(())
    }
}

/// Sets the flag when the process is asked to terminate.
#[cfg(unix)]
fn watch_terminate(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        signals.recv().await;
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

#[cfg(not(unix))]
fn watch_terminate(_: &Arc<AtomicBool>) -> io::Result<()> {
    Ok(())
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(completions::chat_completions))
        .route("/v1/states", post(states::load))
        .route("/v1/states/{id}", get(states::fetch).delete(states::forget))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), authorize))
        .route("/health", get(health))
        .route("/", get(page))
        .fallback(|| async { ApiError::not_found("no such path".to_owned()) })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method".to_owned())
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), log_request))
        .with_state(shared)
}

/// Refuses requests without the API key, if there is one.
async fn authorize(State(shared): State<Arc<Shared>>, request: HttpRequest, next: Next) -> Response {
    let Some(key) = &shared.key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(given) if digest(given.trim()) == *key => next.run(request).await,
        _ => ApiError::unauthorized().into_response(),
    }
}

async fn log_request(State(shared): State<Arc<Shared>>, request: HttpRequest, next: Next) -> Response {
    let begin = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let seconds = begin.elapsed().as_secs_f64();
    shared.log.line(
        "http",
        &[
            ("method", &method),
            ("path", &path),
            ("status", &response.status().as_u16()),
            ("seconds", &format_args!("{seconds:.4}")),
        ],
    );
    response
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.scheduler.is_running() {
        true => json(&object!({"status": "ok"})),
        false => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the model has stopped".to_owned()).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.scheduler.metrics().prometheus()).into_response()
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

impl Shared {
    fn describe(&self) -> serde_json::Value {
        object!({
            "id": self.options.model, "object": "model", "created": self.created, "owned_by": "densessm",
            "max_model_len": self.scheduler.options().max_prompt_tokens,
        })
    }
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    json(&object!({"object": "list", "data": [shared.describe()]}))
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match id == shared.options.model {
        true => json(&shared.describe()),
        false => ApiError::unknown_model(&id, &shared.options.model).into_response(),
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The seconds since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
