//! Calls of a provider's HTTP interface: time limits, pauses, repeats; no key in any message.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{
    Client, RequestBuilder, Response,
    header::{HeaderMap, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use tokio::runtime::{Builder, Runtime};

use crate::stage::{Context, Failure, Result, StopFlag};

const CONNECT: Duration = Duration::from_secs(10);
/// The first pause before a call is repeated, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A server that wants to be left alone for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of an answer, and characters of it that a message has.
pub(super) const SMALL: usize = 16 << 20;
const SHOWN: usize = 300;

/// Why a call brought nothing.
#[derive(Clone, Debug)]
pub(super) struct CallError {
    /// What the server answered; none if the connection broke or time was up.
    pub status: Option<u16>,
    /// Whether a connection was made at all.
    pub connected: bool,
    /// In words, without a key.
    pub why: String,
    /// For how long the server wants to be left alone.
    after: Option<Duration>,
}

impl CallError {
    /// Whether a repeat may help.
    pub fn is_transient(&self) -> bool {
        self.status.is_none_or(|s| matches!(s, 408 | 409 | 425 | 429) || s >= 500)
    }

    /// Whether the server may have done what it was asked for.
    pub fn may_be_done(&self) -> bool {
        self.connected && self.status.is_none_or(|s| matches!(s, 408 | 409) || s >= 500)
    }

    /// Whether the server has no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self.status, Some(404 | 410))
    }

    /// Whether it is this one request that the server does not take, and not any.
    pub fn is_about_request(&self) -> bool {
        matches!(self.status, Some(400 | 413 | 422))
    }

    /// An error that an answer tells which pretends success, as proxies send it.
    pub fn told(status: Option<u16>, why: String) -> Self {
        Self { status, connected: true, why, after: None }
    }

    /// An answer that is not the one that was expected.
    pub fn strange(what: &str) -> Self {
        Self::told(None, what.to_owned())
    }

    /// Why the stage ends.
    pub fn failure(&self, doing: &str) -> Failure {
        let failure = Failure::unavailable(format!("cannot {doing}: {}", self.why));
        failure.hint(match self.status {
            Some(401 | 403) => "check ANTHROPIC_API_KEY or OPENAI_API_KEY",
            Some(404) => "check ANTHROPIC_BASE_URL or OPENAI_BASE_URL, and NAMING_MODEL",
            Some(400..=499) if !self.is_transient() => {
                "the server does not take the request: check NAMING_MODEL and BACKEND"
            }
            _ => "what was answered is kept: run the same command again to go on",
        })
    }
}

/// A provider's HTTP interface.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    runtime: Runtime,
    base: String,
    key: Option<String>,
    stop: StopFlag,
    limit: Duration,
    repeats: u32,
    /// Until when the server wants to be left alone, whichever thread it told.
    quiet: Mutex<Option<Instant>>,
}

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of one call.
    pub timeout: Duration,
    /// Times that a call is repeated.
    pub repeats: u32,
}

impl Http {
    /// A client of `base`, which may have a path, that sends `headers`.
    ///
    /// # Errors
    /// An address that is none or holds a password; a key with characters that no header may have.
    pub fn new(
        context: &Context,
        base: &str,
        (key, headers): (Option<&str>, &[(&'static str, String)]),
        limits: Limits,
    ) -> Result<Self> {
        let unfit = |what| Failure::usage(format!("the base URL of the back end {what}"));
        let url = reqwest::Url::parse(base).map_err(|_| unfit("is no URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                unfit("holds a user or password").hint("give the key as a setting of its own")
            );
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                Failure::usage(format!("the key for header {name} has characters that no key has"))
            })?;
            value.set_sensitive(true);
            map.insert(*name, value);
        }
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(limits.timeout)
            // A redirect to another host would take the key there.
            .redirect(Policy::none())
            .default_headers(map)
            .user_agent(concat!("slurm-sae-pipeline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::unavailable(format!("cannot make an HTTP client: {e}")))?;
        Ok(Self {
            client,
            runtime: Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
            base: base.trim_end_matches('/').to_owned(),
            key: key.map(str::to_owned),
            stop: context.stop.clone(),
            limit: limits.timeout,
            repeats: limits.repeats,
            quiet: Mutex::new(None),
        })
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base)).timeout(self.limit)
    }

    /// Sends a request once and takes at most `room` bytes.
    ///
    /// # Errors
    /// [`CallError`] for any answer but success.
    pub fn once(
        &self,
        request: RequestBuilder,
        room: usize,
    ) -> std::result::Result<Vec<u8>, CallError> {
        self.runtime.block_on(async {
            let lost = |e: reqwest::Error| self.lost(e);
            let mut response = request.send().await.map_err(lost)?;
            let status = response.status();
            let after = retry_after(&response);
            let room = if status.is_success() { room } else { SMALL };
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(lost)? {
                if body.len() + chunk.len() > room {
                    return Err(CallError::strange("the answer is too long"));
                }
                body.extend_from_slice(&chunk);
            }
            if status.is_success() {
                return Ok(body);
            }
            let why = format!("HTTP {}: {}", status, self.said(&body));
            Err(CallError { status: Some(status.as_u16()), connected: true, why, after })
        })
    }

    /// Sends a request that may be repeated, as often as allowed, until its answer is JSON.
    ///
    /// # Errors
    /// An unavailable server; a stop.
    pub fn json(
        &self,
        doing: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<serde_json::Value> {
        let found = self.repeated(doing, SMALL, request, |body| self.parsed(body))?;
        found.map_err(|missing| missing.failure(doing))
    }

    /// As [`Self::json`]; none if there is no such thing.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn json_if_there(
        &self,
        doing: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Option<serde_json::Value>> {
        Ok(self.repeated(doing, SMALL, request, |body| self.parsed(body))?.ok())
    }

    fn parsed(&self, body: &[u8]) -> std::result::Result<serde_json::Value, CallError> {
        let strange = |_| CallError::strange(&format!("not JSON: {}", self.said(body)));
        serde_json::from_slice(body).map_err(strange)
    }

    /// Sends a request that may be repeated, as often as allowed, until its answer of at most `room` bytes can
    /// be read; the inner error says that there is no such thing.
    ///
    /// # Errors
    /// An unavailable server; a stop.
    pub fn repeated<T>(
        &self,
        doing: &str,
        room: usize,
        request: impl Fn() -> RequestBuilder,
        read: impl Fn(&[u8]) -> std::result::Result<T, CallError>,
    ) -> Result<std::result::Result<T, CallError>> {
        let mut tried = 0;
        loop {
            match self.once(request(), room).and_then(|body| read(&body)) {
                Ok(found) => return Ok(Ok(found)),
                Err(error) if error.is_missing() => return Ok(Err(error)),
                Err(error) => self.pause(doing, &error, tried)?,
            }
            tried += 1;
        }
    }

    /// Waits before a call is repeated for the `tried`th time, from 0: as long as the server wants, else
    /// longer each time, from half to all of a pause so that workers do not come back together.
    ///
    /// # Errors
    /// The failure of the call if it is final or the repeats are used up; a stop.
    pub fn pause(&self, doing: &str, error: &CallError, tried: u32) -> Result<()> {
        if let Some(after) = error.after {
            let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            *quiet = (*quiet).max(Some(Instant::now() + after.min(PATIENCE)));
        }
        if !error.is_transient()
            || tried >= self.repeats
            || error.after.is_some_and(|a| a > PATIENCE)
        {
            return Err(error.failure(doing));
        }
        let pause = (PAUSE * 2_u32.saturating_pow(tried.min(20))).min(LONGEST_PAUSE);
        let random = RandomState::new().hash_one(tried) % 1000;
        let jittered = pause.mul_f64(0.5 + random as f64 / 2000.0);
        tracing::warn!("cannot {doing}, trying again: {}", error.why);
        self.wait(error.after.map_or(jittered, |after| after + jittered / 10))
    }

    /// Waits, unless asked to stop.
    ///
    /// # Errors
    /// A stop.
    pub fn wait(&self, pause: Duration) -> Result<()> {
        self.stop.wait(pause);
        if self.stop.requested() {
            return Err(Failure::stopped("stopped on request; what was answered is kept"));
        }
        Ok(())
    }

    /// Waits as long as the server has asked any thread for.
    ///
    /// # Errors
    /// A stop.
    pub fn leave_alone(&self) -> Result<()> {
        let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let left = quiet.map(|end| end.saturating_duration_since(Instant::now()));
        self.wait(left.unwrap_or_default())
    }

    fn lost(&self, error: reqwest::Error) -> CallError {
        let connected = !error.is_connect();
        let mut why =
            if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
        // The address may be the user's secret; messages do without.
        let error = error.without_url();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(e) = cause {
            why += &format!("{}{e}", if why.is_empty() { "" } else { ": " });
            cause = e.source();
        }
        CallError { status: None, connected, why: self.redacted(&why), after: None }
    }

    /// What a server says, short and on one line.
    fn said(&self, body: &[u8]) -> String {
        let text = self.redacted(&String::from_utf8_lossy(body));
        let words: Vec<&str> = text.split_whitespace().collect();
        words.join(" ").chars().take(SHOWN).collect()
    }

    /// A text without the key: servers repeat what they were sent.
    pub fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) if !key.is_empty() => text.replace(key.as_str(), "***"),
            _ => text.to_owned(),
        }
    }
}

/// Seconds, or a date.
fn retry_after(response: &Response) -> Option<Duration> {
    pause_of(response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim())
}

fn pause_of(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let left = until.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(left).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        assert_eq!(pause_of("2"), Some(Duration::from_secs(2)));
        assert_eq!(pause_of("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(pause_of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let later = later.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let pause = pause_of(&later).unwrap();
        assert!((98..=100).contains(&pause.as_secs()), "{later}: {pause:?}");
        assert_eq!(pause_of("soon"), None);
        assert_eq!(pause_of("-1"), None);
    }
}
