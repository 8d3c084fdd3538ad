//! What was asked, answered and paid: JSON lines, each on disk before the program goes on.
//!
//! A request is known by its [id](super::question::Question::id). Before anything is sent a line says so
//! ([`Event::Intent`] for a batch, [`Event::Sent`] for a single request); a line behind it says what came
//! of it. After a crash between the two:
//!
//! * **batch**: the batch is looked for at the provider before any of its requests is sent again.
//!   OpenAI's carry the intent's name in their metadata. Anthropic's carry nothing, so the candidates are the
//!   batches that were made after the newest one known before, that no other intent owns and that have as many
//!   requests; once one has ended, the ids of its results decide. Until then the requests are held back. A batch
//!   that is not found counts as never made only some time (SETTLE) after the intent.
//! * **single request**: whether it was answered cannot be told. It is sent again under the same
//!   `Idempotency-Key`; servers that know the header charge once, for others up to CONCURRENCY answers are
//!   paid twice. What they may have cost stays part of the sum that MAX_COST limits.
//!
//! Each worker has a ledger of its own, `ledger-<worker>-of-<workers>.jsonl`, under a lock; all are read. Workers
//! of an array of another size are refused, since two of them could have the same latent.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{args::Backend, price::Price, question::Kind};
use crate::{
    slurm::Share,
    stage::{Failure, Result, atomic, lock::Lock},
};

/// A request as it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub id: String,
    pub latent: u32,
    pub kind: Kind,
    pub part: u32,
    /// How many answers to the same question could not be read.
    pub attempt: u32,
    /// What it costs at most, estimated.
    pub at_most: f64,
}

/// Tokens that were charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    pub input: u64,
    pub output: u64,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// A batch is about to be made; `newest` is the newest one that was there before.
    Intent {
        intent: String,
        backend: Backend,
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
    /// No answer came although it was sent again and again; it may have been charged.
    Lost { id: String, why: String },
    /// The batch ended before the request's turn; nothing is charged.
    Expired { id: String },
    /// There is nothing to ask about a latent.
    Unasked { latent: u32, why: String },
}

#[derive(Serialize, Deserialize)]
struct Line {
    at: jiff::Timestamp,
    #[serde(flatten)]
    event: Event,
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Progress {
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
pub(super) struct Request {
    pub asked: Asked,
    pub progress: Progress,
    /// Times that it failed, and the last reason.
    pub failures: u32,
    pub why: String,
    /// Times that it was sent without knowing what became of it.
    unknown: u32,
}

/// A batch that is not over.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub at: jiff::Timestamp,
    pub backend: Backend,
    pub price: Price,
    pub newest: Option<String>,
    pub ids: Vec<String>,
    /// Unknown after a crash.
    pub batch: Option<String>,
}

/// What a ledger comes to.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
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

impl State {
    fn apply(&mut self, Line { at, event }: Line) {
        match event {
            Event::Intent { intent, backend, price, newest, requests } => {
                let ids = requests.iter().map(|r| r.id.clone()).collect();
                requests.into_iter().for_each(|asked| self.ask(asked, Progress::Held));
                let made = Intent { at, backend, price, newest, ids, batch: None };
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
                            r.progress = Progress::Open;
                            r.unknown = r.unknown.saturating_sub(1);
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
            }),
            Event::Expired { id } => self.vain(&id, "expired".into()),
            Event::Unasked { latent, why } => {
                self.unasked.insert(latent, why);
            }
        }
    }

    fn ask(&mut self, asked: Asked, progress: Progress) {
        let id = asked.id.clone();
        let new = || Request {
            asked,
            progress: Progress::Open,
            failures: 0,
            why: String::new(),
            unknown: 0,
        };
        let request = self.requests.entry(id).or_insert_with(new);
        request.unknown += 1;
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
            if r.progress == Progress::Held {
                r.progress = Progress::Open;
            }
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

/// One worker's ledger, and what the others' say.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    share: Share,
    state: State,
    /// Requests in other ledgers.
    others: HashMap<String, Request>,
    /// Batches in other ledgers.
    batches: HashSet<String>,
    /// What ledgers of arrays of other sizes come to.
    elsewhere: f64,
    _lock: Lock,
}

impl Ledger {
    /// Opens a worker's ledger in `names/`, which is made.
    ///
    /// # Errors
    /// A stop if another process has it or works on an array of another size; a damaged ledger.
    pub fn open(dir: &Path, share: Share) -> Result<Self> {
        fs_err::create_dir_all(dir)?;
        let lock = Lock::take(&dir.join(lock_name(share)), "the names of this training")?;
        let path = dir.join(ledger_name(share));
        mend(&path)?;
        let mut ledger = Self {
            state: State::default(),
            others: HashMap::new(),
            batches: HashSet::new(),
            elsewhere: 0.0,
            _lock: lock,
            path,
            share,
        };
        for (other, path) in ledgers(dir)? {
            let state = read(&path)?;
            if other == share {
                ledger.state = state;
                continue;
            }
            if other.count != share.count {
                Lock::take(&dir.join(lock_name(other)), "the names of this training")?;
                ledger.elsewhere += state.committed();
            }
            ledger.batches.extend(state.batches);
            ledger.others.extend(state.requests);
        }
        Ok(ledger)
    }

    /// Writes lines and waits until they are on the disk.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn write(&mut self, events: Vec<Event>) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let at = jiff::Timestamp::now();
        let lines: Vec<Line> = events.into_iter().map(|event| Line { at, event }).collect();
        let text = super::names::lines(&lines)?;
        atomic::append_line(&self.path, text.trim_end())?;
        lines.into_iter().for_each(|line| self.state.apply(line));
        Ok(())
    }

    /// This worker's ledger.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether a batch is known to belong to some intent.
    pub fn knows(&self, batch: &str) -> bool {
        self.batches.contains(batch) || self.state.batches.iter().any(|known| known == batch)
    }

    /// What is known of a request: this worker's word, unless another has the answer.
    pub fn request(&self, id: &str) -> Option<&Request> {
        let (own, other) = (self.state.requests.get(id), self.others.get(id));
        match other {
            Some(request) if request.progress != Progress::Open => Some(request),
            other => own.or(other),
        }
    }

    /// What this worker may still spend of a sum for all of them.
    pub fn left_of(&self, sum: f64) -> f64 {
        (sum - self.elsewhere) / self.share.count as f64 - self.state.committed()
    }
}

/// What all ledgers of `names/` come to; none before there are any.
///
/// # Errors
/// A damaged ledger.
pub(super) fn all(dir: &Path) -> Result<Vec<State>> {
    ledgers(dir)?.into_iter().map(|(_, path)| read(&path)).collect()
}

/// The workers that have a ledger in `names/`.
///
/// # Errors
/// Any I/O error.
pub(super) fn shares(dir: &Path) -> Result<Vec<Share>> {
    Ok(ledgers(dir)?.into_iter().map(|(share, _)| share).collect())
}

fn ledger_name(share: Share) -> String {
    format!("ledger-{}-of-{}.jsonl", share.index, share.count)
}

fn lock_name(share: Share) -> String {
    format!(".lock-{}-of-{}", share.index, share.count)
}

fn ledgers(dir: &Path) -> Result<Vec<(Share, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs_err::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let share = name.strip_prefix("ledger-").and_then(|n| n.strip_suffix(".jsonl"));
        let share = share.and_then(|s| s.split_once("-of-"));
        if let Some((index, count)) = share
            && let (Ok(index), Ok(count)) = (index.parse(), count.parse())
        {
            found.push((Share { index, count }, path));
        }
    }
    found.sort_by_key(|(share, _)| (share.count, share.index));
    Ok(found)
}

/// Cuts off a last line that a crash has torn: what it was to say was not acted on yet.
fn mend(path: &Path) -> Result<()> {
    let bytes = match fs_err::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        tracing::warn!("`{}` ends in half a line, which is dropped", path.display());
        let file = fs_err::OpenOptions::new().write(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Reads a ledger that may still be written to: a last line without its end is left out.
fn read(path: &Path) -> Result<State> {
    let text = fs_err::read_to_string(path)?;
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    let mut state = State::default();
    for (n, line) in text[..whole].lines().enumerate() {
        let line = serde_json::from_str(line).map_err(|e| {
            Failure::input(format!("`{}` line {}: {e}", path.display(), n + 1))
                .hint("the ledger knows what was paid: restore it, or remove that line alone")
        })?;
        state.apply(line);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage;

    fn asked(id: &str) -> Asked {
        Asked { id: id.into(), latent: 1, kind: Kind::Explain, part: 0, attempt: 0, at_most: 1.0 }
    }

    fn answered(id: &str) -> Event {
        Event::Answered {
            id: id.into(),
            text: "t".into(),
            model: "m".into(),
            usage: Usage::default(),
            cost: 0.25,
        }
    }

    fn intent(name: &str, ids: &[&str]) -> Event {
        Event::Intent {
            intent: name.into(),
            backend: Backend::Openai,
            price: Price::default(),
            newest: None,
            requests: ids.iter().map(|id| asked(id)).collect(),
        }
    }

    #[test]
    fn a_ledger_says_the_same_when_it_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
        ledger.write(vec![intent("i", &["a", "b", "c"])]).unwrap();
        assert_eq!(ledger.state().committed(), 3.0);
        ledger.write(vec![Event::Submitted { intent: "i".into(), batch: "B".into() }]).unwrap();
        ledger.write(vec![answered("a"), Event::Expired { id: "b".into() }]).unwrap();
        assert_eq!(ledger.state().committed(), 1.25);
        let committed = |ledger: &Ledger| {
            let state = ledger.state();
            let progress = |id| ledger.request(id).unwrap().progress.clone();
            assert!(matches!(progress("a"), Progress::Answered { .. }));
            assert_eq!((progress("b"), progress("c")), (Progress::Open, Progress::Held));
            (state.committed(), state.intents["i"].batch.clone())
        };
        let before = committed(&ledger);
        drop(ledger);
        let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
        assert_eq!(committed(&ledger), before);
        ledger.write(vec![Event::Ended { intent: "i".into() }]).unwrap();
        assert_eq!(ledger.state().committed(), 0.25);
        assert_eq!(ledger.request("c").unwrap().progress, Progress::Open);
        assert!(ledger.state().intents.is_empty());
    }

    #[test]
    fn what_was_sent_and_lost_counts_as_spent() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
        let sent = || vec![Event::Sent { request: asked("a") }];
        ledger.write(sent()).unwrap();
        ledger.write(sent()).unwrap();
        ledger.write(vec![answered("a")]).unwrap();
        assert_eq!(ledger.state().committed(), 1.25);
        ledger.write(vec![Event::Sent { request: asked("b") }]).unwrap();
        ledger.write(vec![Event::NotTaken { id: "b".into(), why: "429".into() }]).unwrap();
        assert_eq!(ledger.left_of(2.0), 0.75);
    }

    #[test]
    fn half_a_line_is_dropped_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path(), Share::WHOLE).unwrap();
        ledger.write(vec![intent("i", &["a"])]).unwrap();
        drop(ledger);
        let path = dir.path().join("ledger-0-of-1.jsonl");
        let whole = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("{whole}{{\"event\": \"sub")).unwrap();
        drop(Ledger::open(dir.path(), Share::WHOLE).unwrap());
        assert_eq!(fs_err::read_to_string(&path).unwrap(), whole);
        fs_err::write(&path, format!("{{}}\n{whole}")).unwrap();
        let failure = Ledger::open(dir.path(), Share::WHOLE).unwrap_err();
        assert_eq!(failure.kind, stage::Kind::Input);
        assert!(failure.source.to_string().contains("line 1"));
    }

    #[test]
    fn workers_see_each_others_answers_and_other_arrays_are_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let share = |index, count| Share { index, count };
        let mut first = Ledger::open(dir.path(), share(0, 2)).unwrap();
        first.write(vec![Event::Sent { request: asked("a") }, answered("a")]).unwrap();
        let second = Ledger::open(dir.path(), share(1, 2)).unwrap();
        assert!(matches!(second.request("a").unwrap().progress, Progress::Answered { .. }));
        assert_eq!(second.left_of(1.0), 0.5);
        for other in [share(0, 2), share(0, 1), share(2, 3)] {
            let failure = Ledger::open(dir.path(), other).unwrap_err();
            assert_eq!(failure.kind, stage::Kind::Stopped, "{other:?}");
        }
        drop((first, second));
        assert_eq!(Ledger::open(dir.path(), share(0, 1)).unwrap().left_of(1.0), 0.75);
    }
}
