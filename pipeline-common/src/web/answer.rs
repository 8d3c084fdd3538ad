//! Answers: JSON, and errors as `{error, hint}` with a status.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;

use crate::stage::{Classify, Failure, Kind};

/// Why a request gets no answer.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub error: String,
    pub hint: Option<String>,
    /// Seconds after which another try may succeed.
    pub retry: Option<u32>,
}

/// What handlers return.
pub(super) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: None, retry: None }
    }

    /// A parameter or body that is not valid.
    pub fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// Something that does not exist.
    pub fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// Nobody waits for the answer.
    pub fn gone() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "nobody waits for the answer any more")
    }

    /// The server ends.
    pub fn stopped() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server was asked to stop")
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub fn retry(self, seconds: u32) -> Self {
        Self { retry: Some(seconds), ..self }
    }

    /// Errors and hints as they are shown, without a status.
    pub fn told(&self) -> Told<'_> {
        Told { error: &self.error, hint: self.hint.as_deref() }
    }
}

/// An error as JSON shows it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Told<'a> {
    error: &'a str,
    hint: Option<&'a str>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match failure.kind {
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::Unavailable | Kind::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unexpected | Kind::Input => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let chain: Vec<String> = failure.source.chain().map(ToString::to_string).collect();
        Self { hint: failure.hint, ..Self::new(status, chain.join(": ")) }
    }
}

impl<E: Classify + Send + Sync + 'static> From<E> for Refusal {
    fn from(error: E) -> Self {
        Failure::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = json(self.status, &self.told());
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON answer.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => raw(status, bytes),
        Err(e) => {
            let text = format!(r#"{{"error":{:?},"hint":null}}"#, e.to_string());
            raw(StatusCode::INTERNAL_SERVER_ERROR, text.into_bytes())
        }
    }
}

/// An answer that is JSON already.
pub(super) fn raw(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
