//! Where and how a scheduler is served.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// The address of a server, its name for the model, and its limits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpOptions {
    /// Where to listen.
    pub address: SocketAddr,
    /// The name of the model that clients see and send.
    pub model: String,
    /// What clients have to send as bearer token; none admits everyone.
    pub api_key: Option<String>,
    /// Maximum number of bytes of a request's body. Uploaded states may be as large as the model's are, in addition.
    pub body_bytes: usize,
    /// The time that the body of a request may take to arrive.
    pub body_time: Duration,
    /// The time that a request may take, waiting included; none sets no limit.
    pub request_time: Option<Duration>,
    /// The time that running requests get when the server is told to stop.
    pub shutdown: Duration,
}

impl HttpOptions {
    /// Returns options for a model of that name: loopback, port 8000, no key, bodies of 8 MiB within 30 seconds,
    /// requests of 10 minutes, 30 seconds to stop.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            model: model.into(),
            api_key: None,
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            request_time: Some(Duration::from_secs(600)),
            shutdown: Duration::from_secs(30),
        }
    }

    /// Sets where to listen.
    #[must_use]
    pub fn with_address(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// Sets the key that clients have to send.
    #[must_use]
    pub fn with_api_key(self, api_key: Option<String>) -> Self {
        Self { api_key, ..self }
    }

    /// Sets the maximum size of a request's body, and the time that it may take to arrive.
    #[must_use]
    pub fn with_body(self, body_bytes: usize, body_time: Duration) -> Self {
        Self { body_bytes, body_time, ..self }
    }

    /// Sets the time that a request may take.
    #[must_use]
    pub fn with_request_time(self, request_time: Option<Duration>) -> Self {
        Self { request_time, ..self }
    }

    /// Sets the time that running requests get when the server is told to stop.
    #[must_use]
    pub fn with_shutdown(self, shutdown: Duration) -> Self {
        Self { shutdown, ..self }
    }
}
