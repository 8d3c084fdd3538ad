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
//!   `Idempotency-Key`; servers that know the header charge once, others may charge again: after a crash for
//!   up to CONCURRENCY answers, and where no answer came for up to three times of a request. What they may have
//!   cost stays part of the sum that MAX_COST limits.
//!
//! Each worker has a ledger of its own, `ledger-<worker>-of-<workers>.jsonl`, under a lock; all are read. Workers
//! of an array of another size are refused, since two of them could have the same latent.

mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use state::Line;

#[cfg(test)]
pub(super) use self::state::GIVE_UP;
pub(super) use self::state::{Asked, Event, Intent, Progress, Request, State, Usage, merged};
use crate::{
    slurm::Share,
    stage::{Failure, Result, atomic, lock::Lock},
};

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
    /// Whether writing has failed, so that nothing more may be sent.
    broken: bool,
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
        // What a torn line was to say was not acted on yet.
        if atomic::cut_torn_line(&path)? {
            tracing::warn!("`{}` ended in half a line, which is dropped", path.display());
        }
        // It is there before others are looked for: of two workers that begin together one sees the other.
        atomic::touch(&path)?;
        let mut ledger = Self {
            state: State::default(),
            others: HashMap::new(),
            batches: HashSet::new(),
            elsewhere: 0.0,
            broken: false,
            _lock: lock,
            path,
            share,
        };
        let mut others = Vec::new();
        for (other, path) in ledgers(dir)? {
            if other.count != share.count {
                // Before it is read: its last answers are there.
                Lock::must_be_free(&dir.join(lock_name(other)), "the names of this training")?;
            }
            let state = read(&path)?;
            if other == share {
                ledger.state = state;
                continue;
            }
            if other.count != share.count {
                ledger.elsewhere += state.committed();
            }
            ledger.batches.extend(state.batches);
            others.push(state.requests);
        }
        ledger.others = merged(others);
        Ok(ledger)
    }

    /// Writes lines and waits until they are on the disk.
    ///
    /// # Errors
    /// Any I/O error; then also whatever is written afterwards.
    pub fn write(&mut self, events: Vec<Event>) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        if self.broken {
            let what = format!("`{}` could not be written to", self.path.display());
            return Err(Failure::unavailable(what).hint("nothing is sent that is not written down"));
        }
        let at = jiff::Timestamp::now();
        let lines: Vec<Line> = events.into_iter().map(|event| Line { at, event }).collect();
        let text = super::names::lines(&lines)?;
        self.broken = true;
        atomic::append_line(&self.path, text.trim_end())?;
        self.broken = false;
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

    /// What is known of a request, by this worker or another.
    pub fn request(&self, id: &str) -> Option<&Request> {
        let known = [self.others.get(id), self.state.requests.get(id)];
        known.into_iter().flatten().max_by_key(|request| request.weight())
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

/// The workers with batches that are not over.
///
/// # Errors
/// A damaged ledger.
pub(super) fn with_batches(dir: &Path) -> Result<Vec<Share>> {
    let mut found = Vec::new();
    for (share, path) in ledgers(dir)? {
        if !read(&path)?.intents.is_empty() {
            found.push(share);
        }
    }
    Ok(found)
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

/// Reads a ledger that may still be written to: a last line without its end is left out.
fn read(path: &Path) -> Result<State> {
    let bytes = fs_err::read(path)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').unwrap_or(0);
    let mut state = State::default();
    let lines = bytes[..whole].split(|b| *b == b'\n').enumerate();
    for (n, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let line = serde_json::from_slice(line).map_err(|e| {
            Failure::input(format!("`{}` line {}: {e}", path.display(), n + 1))
                .hint("the ledger knows what was paid: restore it, or remove that line alone")
        })?;
        state.apply(line);
    }
    Ok(state)
}
