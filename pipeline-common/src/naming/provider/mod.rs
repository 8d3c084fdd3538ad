//! The back ends: what a request looks like on the wire, and what an answer means.
//!
//! [`anthropic`] is Message Batches, [`openai`] the Batch API and chat completions, which any compatible
//! server speaks. Nothing here knows of the ledger.

mod anthropic;
mod openai;

use serde_json::Value;

use super::{
    args::{Backend, BackendArgs},
    http::{CallError, Http},
    ledger::{Intent, Usage},
    question::{Asking, Question},
};
use crate::stage::{Context, Failure, Result};

/// Bytes of results that are taken.
const RESULTS: usize = 4 << 30;
/// Clocks of two machines differ by less.
const SKEW_SECONDS: i64 = 3600;

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Answered {
        text: String,
        model: String,
        usage: Usage,
    },
    Refused {
        said: String,
        usage: Usage,
    },
    Failed(String),
    /// The provider took none of a batch: no request's fault.
    NotTaken(String),
    Expired,
}

/// A request by its id, with its body.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub id: String,
    pub body: Value,
}

/// A batch that only needs to be made.
#[derive(Debug)]
pub(super) struct Prepared {
    body: Vec<u8>,
    /// The newest batch that was there before.
    pub newest: Option<String>,
}

/// Where a batch is that may have been made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Batch(String),
    /// There is one that may be it, which will show once it has ended.
    Undecided,
    Nothing,
}

/// How far a batch is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Poll {
    UnderWay {
        done: u64,
        total: u64,
    },
    /// Its results can be fetched.
    Ended,
    /// The provider knows no such batch.
    Unknown,
}

/// The results of a batch that has ended.
#[derive(Debug)]
pub(super) struct Results {
    pub by_id: Vec<(String, Outcome)>,
    /// What became of requests that are not listed.
    pub rest: Outcome,
    /// Why the provider, or somebody there, ended the batch before its time.
    pub trouble: Option<String>,
}

/// A back end.
#[derive(Debug)]
pub(super) struct Provider {
    pub backend: Backend,
    /// Tells the server from others: batches of one are not looked for at another.
    pub server: String,
    pub http: Http,
    structured: bool,
    /// Whether the server is OpenAI's own, whose newer models do not know `max_tokens`.
    own: bool,
}

impl Provider {
    /// A client of a back end.
    ///
    /// # Errors
    /// A key that is missing or unfit, an address that is none.
    pub fn new(context: &Context, args: &BackendArgs, backend: Backend) -> Result<Self> {
        let (base, default, key, name) = match backend {
            Backend::Anthropic => {
                let (base, key) = (&args.anthropic_base_url, &args.anthropic_api_key);
                (base, anthropic::BASE, key.as_deref(), "ANTHROPIC")
            }
            Backend::Openai | Backend::Chat => {
                (&args.openai_base_url, openai::BASE, args.openai_api_key.as_deref(), "OPENAI")
            }
        };
        let key = key.map(str::trim);
        if key.is_none() && base.is_none() {
            return Err(Failure::usage(format!("{name}_API_KEY is not set")).hint(format!(
                "set it, or {name}_BASE_URL to a server that needs no key; BACKEND says who answers"
            )));
        }
        let headers = match backend {
            Backend::Anthropic => anthropic::headers(key),
            Backend::Openai | Backend::Chat => openai::headers(key),
        };
        let own = base.as_deref().is_none_or(|base| base.starts_with("https://api.openai.com"));
        let base = base.as_deref().unwrap_or(default);
        let http = Http::new(context, base, (key, &headers), args.limits())?;
        let server = blake3::hash(base.trim_end_matches('/').as_bytes()).to_hex()[..16].to_owned();
        Ok(Self { backend, server, http, structured: args.structured, own })
    }

    /// The body of a question's request.
    pub fn body(&self, question: &Question, asking: &Asking) -> Value {
        match self.backend {
            Backend::Anthropic => anthropic::body(question, asking, self.structured),
            Backend::Openai | Backend::Chat => {
                let limit = if self.own || self.backend == Backend::Openai {
                    "max_completion_tokens"
                } else {
                    "max_tokens"
                };
                openai::body(question, asking, limit, self.structured)
            }
        }
    }

    /// What is needed to make a batch, with all that can be done before it counts.
    ///
    /// # Errors
    /// An unavailable provider.
    pub fn prepare(&self, intent: &str, requests: &[Outgoing]) -> Result<Prepared> {
        match self.backend {
            Backend::Anthropic => anthropic::prepare(&self.http, requests),
            Backend::Openai | Backend::Chat => openai::prepare(&self.http, intent, requests),
        }
    }

    /// Makes a batch, once; its id.
    ///
    /// # Errors
    /// [`CallError`], which says whether it may have been made all the same.
    pub fn create(
        &self,
        intent: &str,
        prepared: &Prepared,
    ) -> std::result::Result<String, CallError> {
        let post = self.http.post(self.batches()).body(prepared.body.clone());
        let body = self.http.once(post.header("idempotency-key", intent), super::http::SMALL)?;
        let id = serde_json::from_slice(&body).ok().and_then(|made: Value| text(&made, "id"));
        id.ok_or_else(|| CallError::strange("the answer names no batch"))
    }

    /// Looks for the batch that was to be made for an intent; `known` tells those of other intents.
    ///
    /// # Errors
    /// An unavailable provider.
    pub fn find(&self, name: &str, intent: &Intent, known: &dyn Fn(&str) -> bool) -> Result<Found> {
        let earliest = intent.at.as_second() - SKEW_SECONDS;
        match self.backend {
            Backend::Anthropic => anthropic::find(&self.http, intent, earliest, known),
            Backend::Openai | Backend::Chat => openai::find(&self.http, name, earliest),
        }
    }

    /// How far a batch is.
    ///
    /// # Errors
    /// An unavailable provider; an answer that is none.
    pub fn poll(&self, batch: &str) -> Result<Poll> {
        let doing = format!("ask how far batch {batch} is");
        let get = || self.http.get(&format!("{}/{batch}", self.batches()));
        let Some(state) = self.http.json_if_there(&doing, get)? else { return Ok(Poll::Unknown) };
        let poll = match self.backend {
            Backend::Anthropic => anthropic::poll(&state),
            Backend::Openai | Backend::Chat => openai::poll(&state),
        };
        poll.ok_or_else(|| Failure::unavailable(format!("cannot {doing}: the answer is none")))
    }

    /// The results of a batch that has ended, all of them; none if they are not there.
    ///
    /// # Errors
    /// An unavailable provider, results that stay cut off.
    pub fn results(&self, batch: &str) -> Result<Option<Results>> {
        let found = match self.backend {
            Backend::Anthropic => anthropic::results(&self.http, batch),
            Backend::Openai | Backend::Chat => openai::results(&self.http, batch),
        };
        let clean = |(id, outcome)| (id, self.redacted(outcome));
        Ok(found?.map(|results| Results {
            by_id: results.by_id.into_iter().map(clean).collect(),
            rest: self.redacted(results.rest),
            trouble: results.trouble.map(|why| self.http.redacted(&why)),
        }))
    }

    /// Sends a single request, once.
    ///
    /// # Errors
    /// [`CallError`] for whatever is no answer of the model.
    pub fn ask(&self, id: &str, body: &str) -> std::result::Result<Outcome, CallError> {
        let post = self.http.post("/chat/completions").header("idempotency-key", id);
        let body = self.http.once(post.body(body.to_owned()), super::http::SMALL)?;
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| CallError::strange("the answer is no JSON"))?;
        match answer.get("error").filter(|error| !error.is_null()) {
            Some(error) if answer.get("choices").is_none() => {
                let code = error.get("code").and_then(Value::as_u64).filter(|c| *c < 600);
                let status = code.and_then(|code| u16::try_from(code).ok());
                Err(CallError::told(status, self.http.redacted(&said(error))))
            }
            _ => Ok(self.redacted(openai::outcome(&answer))),
        }
    }

    /// Without the key, which servers repeat.
    fn redacted(&self, outcome: Outcome) -> Outcome {
        let clean = |text: String| self.http.redacted(&text);
        match outcome {
            Outcome::Answered { text, model, usage } => {
                Outcome::Answered { text: clean(text), model: clean(model), usage }
            }
            Outcome::Refused { said, usage } => Outcome::Refused { said: clean(said), usage },
            Outcome::Failed(why) => Outcome::Failed(clean(why)),
            Outcome::NotTaken(why) => Outcome::NotTaken(clean(why)),
            Outcome::Expired => Outcome::Expired,
        }
    }

    fn batches(&self) -> &'static str {
        match self.backend {
            Backend::Anthropic => anthropic::BATCHES,
            Backend::Openai | Backend::Chat => openai::BATCHES,
        }
    }
}

/// The lines of results, at least `expected`; what comes cut off is fetched again. None if they are gone.
fn lines(http: &Http, path: &str, expected: u64) -> Result<Option<Vec<Value>>> {
    let whole = |body: &[u8]| match parsed(body) {
        Ok(lines) if lines.len() as u64 >= expected => Ok(lines),
        _ => Err(CallError::strange("they are cut off")),
    };
    Ok(http.repeated("fetch results", RESULTS, || http.get(path), whole)?.ok())
}

fn parsed(lines: &[u8]) -> serde_json::Result<Vec<Value>> {
    let lines = lines.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines.map(serde_json::from_slice).collect()
}

/// Walks through a provider's batches, newest first, until `look` has seen enough.
fn walk<T>(
    http: &Http,
    (path, cursor): (&str, &str),
    mut look: impl FnMut(&Value) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut after = String::new();
    loop {
        let list = http.json("list batches", || http.get(&format!("{path}?limit=100{after}")))?;
        let empty = Vec::new();
        let data = list.get("data").and_then(Value::as_array).unwrap_or(&empty);
        for batch in data {
            if let Some(found) = look(batch)? {
                return Ok(Some(found));
            }
        }
        let more = list.get("has_more").and_then(Value::as_bool).unwrap_or(false);
        match data.last().and_then(|last| text(last, "id")) {
            Some(last) if more => after = format!("&{cursor}={last}"),
            _ => return Ok(None),
        }
    }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// What an error object says, in a line.
fn said(error: &Value) -> String {
    let message = error.get("message").and_then(Value::as_str);
    let kind = ["type", "code"].iter().find_map(|key| error.get(key)?.as_str());
    match (kind, message) {
        (Some(kind), Some(message)) => format!("{kind}: {message}"),
        (None, Some(message)) => message.to_owned(),
        _ => error.to_string(),
    }
}
