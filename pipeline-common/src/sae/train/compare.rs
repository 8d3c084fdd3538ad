//! The SAEs of a sweep side by side: a table on standard output, and in `sweeps/` of the store as
//! JSON and as a page with their curves.

use std::{collections::BTreeMap, path::PathBuf};

use askama::Template;
use serde::Serialize;

use super::{TrainSae, job::Subject, record::TrainingMeta};
use crate::{
    plot::{Figure, Series, tidy},
    sae::{curves, history::Record},
    stage::{
        Context, Result, Stage, atomic,
        columns::aligned,
        entries::Entry,
        heartbeat::{self, Heartbeat, State},
        lock::Lock,
        progress::thousands,
    },
};

/// Columns behind the settings.
const FIGURES: [&str; 7] = ["FVU", "L0", "dead", "loss", "tokens/s", "hours", "state"];

/// The SAEs of a sweep and what they differ in.
pub struct Comparison {
    name: String,
    dir: PathBuf,
    /// YAML keys that entries set.
    keys: Vec<String>,
    runs: Vec<Run>,
}

/// One SAE.
struct Run {
    entry: String,
    run_id: String,
    run_dir: PathBuf,
    /// By the comparison's keys.
    settings: BTreeMap<String, String>,
}

/// How far an SAE is and how good.
#[derive(Serialize)]
struct Outcome<'a> {
    entry: &'a str,
    run_id: &'a str,
    settings: &'a BTreeMap<String, String>,
    /// `done`, or how far it is.
    state: String,
    /// Whether `fvu` and `l0` are of held-out rows, not of the last batch.
    held_out: bool,
    fvu: Option<f64>,
    l0: Option<f64>,
    dead_fraction: Option<f64>,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    hours: f64,
    #[serde(skip)]
    history: Vec<Record>,
}

#[derive(Template)]
#[template(path = "sweep.html")]
struct Page<'a> {
    name: &'a str,
    head: &'a [String],
    rows: &'a [Vec<String>],
    figures: Vec<Figure>,
}

impl Comparison {
    /// Of subjects that were made from these entries; `name` is SAE_RUN_ID, without which the runs'
    /// names make one.
    pub fn new(name: Option<&str>, entries: &[Entry], subjects: &[Subject]) -> Self {
        let mut keys: Vec<String> = vec![];
        for key in entries.iter().flat_map(Entry::keys) {
            if !keys.iter().any(|k| k == key) {
                keys.push(key.to_owned());
            }
        }
        let run = |(entry, subject): (&Entry, &Subject)| {
            let values = subject.context.config.values();
            let value = |key: &String| {
                let value = values.get(key.as_str()).copied().flatten().unwrap_or("unset");
                (key.clone(), value.to_owned())
            };
            Run {
                entry: entry.name.clone(),
                run_id: subject.run_id.clone(),
                run_dir: subject.run_dir.clone(),
                settings: keys.iter().map(value).collect(),
            }
        };
        let runs: Vec<Run> = entries.iter().zip(subjects).map(run).collect();
        let name = name.map_or_else(|| name_of(&runs), str::to_owned);
        let root = subjects.first().map(|subject| subject.reader.store().root().to_owned());
        let dir = root.unwrap_or_default().join("sweeps").join(&name);
        Self { name, dir, keys, runs }
    }

    /// Prints the table and writes the files.
    ///
    /// # Errors
    /// Files of a run that are not what they should be; I/O errors.
    pub fn show(&self, context: &Context) -> Result<()> {
        fs_err::create_dir_all(&self.dir)?;
        // Of elements of a job array that end at the same time, the last one sees all.
        let _lock = Lock::wait(&self.dir.join(".lock"))?;
        let outcomes = self.runs.iter().map(Run::outcome).collect::<Result<Vec<_>>>()?;
        let head: Vec<String> = std::iter::once("SAE".to_owned())
            .chain(self.keys.iter().map(|key| key.to_uppercase()))
            .chain(FIGURES.map(str::to_owned))
            .collect();
        let rows: Vec<Vec<String>> = outcomes.iter().map(|o| self.cells(o)).collect();
        atomic::write_json(&self.dir.join("sweep.json"), &outcomes)?;
        let page = Page { name: &self.name, head: &head, rows: &rows, figures: figures(&outcomes) };
        let page = page.render().map_err(std::io::Error::other)?;
        atomic::write(&self.dir.join("sweep.html"), page.as_bytes())?;
        let place = self.dir.join("sweep.html");
        let left = |i: usize| i == 0 || i + 1 == head.len();
        context.print(&format!("{}\n{}\n", aligned(&head, &rows, left), place.display()));
        Ok(())
    }

    fn cells(&self, outcome: &Outcome<'_>) -> Vec<String> {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), tidy);
        let rate = outcome.tokens_per_second.map(|rate| thousands(rate as u64));
        let settings = self.keys.iter().map(|key| outcome.settings[key].clone());
        let figures = [
            number(outcome.fvu),
            number(outcome.l0),
            number(outcome.dead_fraction),
            number(outcome.loss),
            rate.unwrap_or_else(|| "-".to_owned()),
            tidy(outcome.hours),
            outcome.state.clone(),
        ];
        std::iter::once(outcome.run_id.to_owned()).chain(settings).chain(figures).collect()
    }
}

/// A name that the same runs always get.
fn name_of(runs: &[Run]) -> String {
    let ids: Vec<&str> = runs.iter().map(|run| run.run_id.as_str()).collect();
    format!("sweep-{}", &blake3::hash(ids.join(" ").as_bytes()).to_hex()[..8])
}

impl Run {
    fn outcome(&self) -> Result<Outcome<'_>> {
        let meta = TrainingMeta::read(&self.run_dir)?;
        let (history, timing) = curves::read(&self.run_dir);
        let last = history.last();
        let held_out = last.and_then(|record| record.validation);
        let speed = curves::speed(&timing);
        Ok(Outcome {
            entry: &self.entry,
            run_id: &self.run_id,
            settings: &self.settings,
            state: if meta.is_some() { "done".to_owned() } else { self.state() },
            held_out: held_out.is_some(),
            fvu: held_out.map(|v| v.fvu).or(last.map(|record| record.fvu)),
            l0: held_out.map(|v| v.l0).or(last.map(|record| record.l0)),
            dead_fraction: last.map(|record| record.dead_fraction),
            loss: last.map(|record| record.loss),
            tokens_per_second: speed.map(|(_, rate)| rate),
            hours: speed.map_or(0.0, |(seconds, _)| seconds / 3600.0),
            history,
        })
    }

    /// How far a training is that is not complete.
    fn state(&self) -> String {
        let file = format!("{}-0.json", TrainSae::SECTION);
        match Heartbeat::read(&self.run_dir.join(heartbeat::DIRECTORY).join(file)) {
            Err(_) => "not begun".to_owned(),
            Ok(beat) => {
                let what = match beat.state {
                    State::Failed => "failed at",
                    State::Stopped => "stopped at",
                    State::Running | State::Done => "at",
                };
                format!("{what} step {} of {}", beat.done, beat.total)
            }
        }
    }
}

fn figures(outcomes: &[Outcome<'_>]) -> Vec<Figure> {
    let curve = |of: fn(&Record) -> f64| {
        let series = |o: &Outcome<'_>| {
            Series::line(o.entry, o.history.iter().map(|r| (r.tokens as f64, of(r))))
        };
        outcomes.iter().map(series).collect()
    };
    vec![
        Figure::new("Unexplained variance (FVU)", "tokens", curve(|r| r.fvu)),
        Figure::new("Active latents a row (L0)", "tokens", curve(|r| r.l0)),
        Figure::linear("Share of latents that are dead", "tokens", curve(|r| r.dead_fraction)),
        Figure::new("Loss", "tokens", curve(|r| r.loss)),
    ]
}
