//! The curves of a training: what it writes while it runs, for people to look at.
//!
//! | file | holds |
//! |---|---|
//! | `history.jsonl`, at the end also `history.json` | a [`Record`] every LOG_EVERY steps |
//! | `timing.jsonl` | when each record was made, and the speed until then: a [`Pace`] |
//! | `tensorboard/` | both as TensorBoard's scalars |
//! | `training.html` | both as plots, beside final figures and settings |
//!
//! The first depends on data and settings alone and comes out the same however often a training is
//! interrupted; the others hold the clock.

mod figures;
mod log;
mod page;
mod tensorboard;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

pub use self::page::About;
use self::{
    log::Log,
    tensorboard::{Event, EventFile},
};
use super::{SaeError, history::Record};
use crate::stage::atomic;

/// When a record was made, and how fast the steps up to it were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Steps made.
    pub step: u64,
    /// Seconds of the epoch.
    pub time: f64,
    /// Seconds since the record before, or since the training went on.
    pub seconds: f64,
    /// Rows a second in that time, validations and checkpoints included.
    pub tokens_per_second: f64,
}

/// Lengths in bytes of the logs that belong to a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Of `history.jsonl`.
    pub history: u64,
    /// Of `timing.jsonl`.
    pub timing: u64,
}

/// The curves of a training under way.
#[derive(Debug)]
pub struct Curves {
    dir: PathBuf,
    history: Log<Record>,
    timing: Log<Pace>,
    events: EventFile,
    about: About,
}

impl Curves {
    /// Goes on with the curves in `run_dir` as they were at a checkpoint.
    ///
    /// # Errors
    /// [`SaeError::Format`] for logs that do not belong to the checkpoint; I/O errors.
    pub fn open(run_dir: &Path, about: About, marks: Marks) -> Result<Self, SaeError> {
        let history = Log::<Record>::open(&run_dir.join("history.jsonl"), marks.history)?;
        let timing = Log::<Pace>::open(&run_dir.join("timing.jsonl"), marks.timing)?;
        let both = history.entries().iter().zip(timing.entries());
        let events = both.map(|(record, pace)| event(record, pace));
        let events = EventFile::begin(&run_dir.join("tensorboard"), now(), events)?;
        Ok(Self { dir: run_dir.to_owned(), history, timing, events, about })
    }

    /// Adds a record, made `took` after the one before it or after the training went on, in which
    /// time `rows` rows were trained on.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn push(&mut self, record: Record, rows: u64, took: Duration) -> Result<(), SaeError> {
        let seconds = took.as_secs_f64();
        let tokens_per_second = rows as f64 / seconds.max(1e-9);
        let pace = Pace { step: record.step, time: now(), seconds, tokens_per_second };
        self.events.push(&event(&record, &pace))?;
        self.timing.push(pace)?;
        self.history.push(record)
    }

    /// Makes the logs durable and writes the page; what a checkpoint has to know of them.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn save(&self) -> Result<Marks, SaeError> {
        let marks = Marks { history: self.history.sync()?, timing: self.timing.sync()? };
        let page = page::render(&self.about, self.history.entries(), self.timing.entries())?;
        atomic::replace(&self.dir.join("training.html"), page.as_bytes())?;
        Ok(marks)
    }

    /// Writes `history.json`, once the last record is there.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn finish(&self) -> Result<(), SaeError> {
        Ok(atomic::write_json(&self.dir.join("history.json"), &self.history.entries())?)
    }
}

/// What a training has written so far; a line that another process is about to write is left out.
pub fn read(run_dir: &Path) -> (Vec<Record>, Vec<Pace>) {
    (log::read(&run_dir.join("history.jsonl")), log::read(&run_dir.join("timing.jsonl")))
}

/// Seconds that all steps took, and rows a second in that time; none before the first record.
pub fn speed(timing: &[Pace]) -> Option<(f64, f64)> {
    let seconds: f64 = timing.iter().map(|pace| pace.seconds).sum();
    let rows: f64 = timing.iter().map(|pace| pace.seconds * pace.tokens_per_second).sum();
    (seconds > 0.0).then(|| (seconds, rows / seconds))
}

/// Seconds of the epoch.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A record as a dashboard shows it.
fn event<'a>(record: &Record, pace: &Pace) -> Event<'a> {
    let mut scalars = vec![
        ("train/loss", record.loss),
        ("train/mse", record.mse),
        ("train/fvu", record.fvu),
        ("train/explained_variance", record.explained_variance),
        ("train/l0", record.l0),
        ("train/l1", record.l1),
        ("train/sparsity", record.sparsity),
        ("train/aux", record.aux),
        ("train/dead_fraction", record.dead_fraction),
        ("optimiser/lr", record.lr),
        ("optimiser/sparsity_factor", record.sparsity_factor),
        ("optimiser/gradient_norm", record.gradient_norm),
        ("speed/tokens_per_second", pace.tokens_per_second),
    ];
    if let Some(held_out) = record.validation {
        scalars.extend([
            ("validation/mse", held_out.mse),
            ("validation/fvu", held_out.fvu),
            ("validation/l0", held_out.l0),
        ]);
    }
    Event { time: pace.time, step: record.step, scalars }
}
