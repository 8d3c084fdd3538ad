//! What lines of a ledger say, and what they come to.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    naming::{args::Backend, price::Price, question::Kind},
    stage::ResolvedConfig,
};

/// A request that failed so often is given up.
pub(in crate::naming) const GIVE_UP: u32 = 3;

/// A request as it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::naming) struct Asked {
    pub id: String,
    pub latent: u32,
    pub kind: Kind,
    pub part: u32,
    /// How many answers to the same question could not be read.
    pub attempt: u32,
    /// Tokens that the answer may have.
    #[serde(default)]
    pub answer_tokens: u32,
    /// What it costs at most, estimated.
    pub at_most: f64,
}

/// Tokens that were charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::naming) struct Usage {
    pub input: u64,
    pub output: u64,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(in crate::naming) enum Event {
    /// A process begins to ask, under these settings.
    Began { version: String, config: ResolvedConfig },
    /// A batch is about to be made; `newest` is the newest one that was there before.
    Intent {
        intent: String,
        backend: Backend,
        /// Tells the server from others.
        server: String,
        price: Price,
        newest: Option<String>,
        requests: Vec<Asked>,
    },
    /// The batch was made.
    Submitted { intent: String, batch: String },
    /// The batch was never made.
    Absent { intent: String },
    /// All results of the batch are recorded.
    Ended { intent: String },
    /// A single request is about to be sent.
    Sent { request: Asked },
    /// The server did not take it.
    NotTaken { id: String, why: String },
    /// An answer.
    Answered { id: String, text: String, model: String, usage: Usage, cost: f64 },
    /// The model refuses to answer.
    Refused { id: String, said: String, usage: Usage, cost: f64 },
    /// The request failed at the provider's; nothing is charged.
    Failed { id: String, why: String },
    /// No answer came although it was sent again and again, or the answer is no longer to be had: a failure,
    /// which may have been charged unless the server said that it did not take it.
    Lost { id: String, why: String },
    /// The batch ended before the request's turn; nothing is charged.
    Expired { id: String },
    /// There is nothing to ask about a latent.
    Unasked { latent: u32, why: String },
}

#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    pub at: jiff::Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::naming) enum Progress {
    /// Not asked, or asked in vain: to be sent.
    Open,
    /// In a batch, or in one that may have been made.
    Held,
    Answered {
        text: String,
        model: String,
        at: jiff::Timestamp,
    },
    Refused {
        said: String,
    },
}

/// A request and what became of it.
#[derive(Clone, Debug)]
pub(in crate::naming) struct Request {
    pub asked: Asked,
    pub progress: Progress,
    /// Times that it failed, and the last reason.
    pub failures: u32,
    pub why: String,
    /// Times that it was sent without knowing what became of it.
    unknown: u32,
}

impl Request {
    /// Whether it failed so often that it is not sent again.
    pub fn is_given_up(&self) -> bool {
        self.progress == Progress::Open && self.failures >= GIVE_UP
    }

    fn reopen(&mut self) {
        if self.progress == Progress::Held {
            self.progress = Progress::Open;
        }
    }

    /// Of what several ledgers say of a request: what is answered says more than what is under way, and that
    /// more than what was asked in vain.
    pub(super) fn weight(&self) -> (u8, u32) {
        match self.progress {
            Progress::Open => (0, self.failures),
            Progress::Held => (1, 0),
            Progress::Answered { .. } | Progress::Refused { .. } => (2, 0),
        }
    }
}

/// The requests of several ledgers; of one that several know, what says most.
pub(in crate::naming) fn merged(
    ledgers: impl IntoIterator<Item = HashMap<String, Request>>,
) -> HashMap<String, Request> {
    let mut all: HashMap<String, Request> = HashMap::new();
    for (id, request) in ledgers.into_iter().flatten() {
        match all.entry(id) {
            Entry::Vacant(place) => {
                place.insert(request);
            }
            Entry::Occupied(mut known) if request.weight() > known.get().weight() => {
                known.insert(request);
            }
            Entry::Occupied(_) => {}
        }
    }
    all
}

/// A batch that is not over.
#[derive(Clone, Debug)]
pub(in crate::naming) struct Intent {
    pub at: jiff::Timestamp,
    pub backend: Backend,
    pub server: String,
    pub price: Price,
    pub newest: Option<String>,
    pub ids: Vec<String>,
    /// Unknown after a crash.
    pub batch: Option<String>,
}

/// What a ledger comes to.
#[derive(Clone, Debug, Default)]
pub(in crate::naming) struct State {
    pub requests: HashMap<String, Request>,
    pub intents: BTreeMap<String, Intent>,
    /// Batches that are over or open, so that none is taken for another intent's.
    pub batches: Vec<String>,
    pub usage: Usage,
    /// What answers cost.
    pub spent: f64,
    /// Latents without a question, and why.
    pub unasked: BTreeMap<u32, String>,
}

impl Intent {
    /// How long ago it was written down.
    pub fn age(&self) -> Duration {
        let age = jiff::Timestamp::now().duration_since(self.at);
        Duration::try_from(age).unwrap_or_default()
    }
}

impl State {
    /// Whether anything was ever answered.
    pub fn has_answers(&self) -> bool {
        let answered = |r: &Request| {
            matches!(r.progress, Progress::Answered { .. } | Progress::Refused { .. })
        };
        self.requests.values().any(answered)
    }

    pub(super) fn apply(&mut self, Line { at, event }: Line) {
        match event {
            Event::Began { .. } => {}
            Event::Intent { intent, backend, server, price, newest, requests } => {
                let ids = requests.iter().map(|r| r.id.clone()).collect();
                requests.into_iter().for_each(|asked| self.ask(asked, Progress::Held));
                let made = Intent { at, backend, server, price, newest, ids, batch: None };
                self.intents.insert(intent, made);
            }
            Event::Submitted { intent, batch } => {
                self.batches.push(batch.clone());
                if let Some(intent) = self.intents.get_mut(&intent) {
                    intent.batch = Some(batch);
                }
            }
            Event::Absent { intent } | Event::Ended { intent } => {
                let ids = self.intents.remove(&intent).map(|i| i.ids).unwrap_or_default();
                for id in ids {
                    self.end(&id, |r| {
                        if r.progress == Progress::Held {
                            r.unknown = r.unknown.saturating_sub(1);
                            r.reopen();
                        }
                    });
                }
            }
            Event::Sent { request } => self.ask(request, Progress::Open),
            Event::NotTaken { id, why } => self.vain(&id, why),
            Event::Answered { id, text, model, usage, cost } => {
                self.answered(&id, Progress::Answered { text, model, at }, usage, cost);
            }
            Event::Refused { id, said, usage, cost } => {
                self.answered(&id, Progress::Refused { said }, usage, cost);
            }
            Event::Failed { id, why } => {
                self.vain(&id, why);
                self.end(&id, |r| r.failures += 1);
            }
            Event::Lost { id, why } => self.end(&id, |r| {
                r.failures += 1;
                r.why = why;
                r.reopen();
            }),
            Event::Expired { id } => self.vain(&id, "expired".into()),
            Event::Unasked { latent, why } => {
                self.unasked.insert(latent, why);
            }
        }
    }

    fn ask(&mut self, asked: Asked, progress: Progress) {
        let at_most = asked.at_most;
        let new = || Request {
            asked: asked.clone(),
            progress: Progress::Open,
            failures: 0,
            why: String::new(),
            unknown: 0,
        };
        let request = self.requests.entry(asked.id.clone()).or_insert_with(new);
        request.unknown += 1;
        // Prices differ between runs; what is not known counts at the highest.
        request.asked.at_most = request.asked.at_most.max(at_most);
        request.progress = progress;
    }

    fn end(&mut self, id: &str, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.requests.get_mut(id) {
            change(request);
        }
    }

    fn vain(&mut self, id: &str, why: String) {
        self.end(id, |r| {
            r.unknown = r.unknown.saturating_sub(1);
            r.why = why;
            r.reopen();
        });
    }

    fn answered(&mut self, id: &str, progress: Progress, usage: Usage, cost: f64) {
        self.usage.input += usage.input;
        self.usage.output += usage.output;
        self.spent += cost;
        self.end(id, |r| {
            r.unknown = r.unknown.saturating_sub(1);
            r.progress = progress;
        });
    }

    /// What was paid and what may have to be paid for what is under way or was lost.
    pub fn committed(&self) -> f64 {
        let open = self.requests.values().map(|r| f64::from(r.unknown) * r.asked.at_most);
        self.spent + open.sum::<f64>()
    }
}
