//! The runs of the store, as they are now.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::answer::{Answer, Refusal};
use crate::{
    capture::CaptureMeta,
    sae::train::{TrainingMeta, record::Claim},
    stage::{
        Result,
        meta::META,
        store::{Pointer, Store},
    },
    top::data::TABLE,
};

/// The directory of stage 03's results in a training's.
pub(super) const TOP: &str = "top_sentences";
/// The file of an SAE's weights.
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";

/// A store's runs.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    store: Store,
    /// The training to show first, if it is not the newest.
    first: Option<String>,
}

/// A run's directory and what it is.
enum Run {
    Capture(CaptureMeta),
    Training(TrainingMeta),
    /// A training that is not complete.
    Begun(Claim),
    Other,
}

impl Catalog {
    pub fn new(store: Store, first: Option<String>) -> Self {
        Self { store, first }
    }

    /// Names of all runs' directories, in order.
    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs_err::read_dir(self.store.root().join("runs")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            other => other?,
        };
        let entries = entries.collect::<std::io::Result<Vec<_>>>()?;
        let directories = entries.iter().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> =
            directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| self.store.run_dir(name, Pointer::Training).is_ok());
        names.sort_unstable();
        Ok(names)
    }

    fn dir(&self, run: &str) -> Result<PathBuf> {
        self.store.run_dir(run, Pointer::Training)
    }

    /// Complete trainings.
    pub fn trainings(&self) -> Result<Vec<TrainingMeta>> {
        let is_training = |name: String| {
            let dir = self.dir(&name).ok()?;
            match kind(&dir) {
                Ok(Run::Training(meta)) => Some(renamed(meta, name)),
                _ => None,
            }
        };
        Ok(self.names()?.into_iter().filter_map(is_training).collect())
    }

    /// The training to show first, if there is one among `trainings`.
    pub fn newest(&self, trainings: &[TrainingMeta]) -> Option<String> {
        let pointed = || {
            let file = self.store.root().join(Pointer::Training.file());
            fs_err::read_to_string(file).ok().map(|text| text.trim().to_owned())
        };
        let named = self.first.clone().or_else(pointed);
        let known = |name: &String| trainings.iter().any(|t| t.run_id == *name);
        named.filter(known).or_else(|| Some(trainings.first()?.run_id.clone()))
    }

    /// A complete training and its directory.
    pub fn training(&self, sae: &str) -> Answer<(TrainingMeta, PathBuf)> {
        let missing = |why: &str| {
            Refusal::missing(format!("`{}` {why}", shown(sae))).hint("GET /api/saes lists them")
        };
        let dir = self.dir(sae).map_err(|_| missing("is no name of a training"))?;
        if !dir.is_dir() {
            return Err(missing("is not in this store"));
        }
        match kind(&dir)? {
            Run::Training(meta) => Ok((renamed(meta, sae.to_owned()), dir)),
            Run::Begun(_) => Err(missing("is not complete")
                .hint("02_train_sae goes on where it stopped when it is run again")),
            Run::Capture(_) | Run::Other => Err(missing("is no training")),
        }
    }

    /// The capture of a training, if it is in the store.
    pub fn capture(&self, run: &str) -> Result<Option<CaptureMeta>> {
        CaptureMeta::read(&self.dir(run)?)
    }

    /// All runs with what they say about themselves; `names` counts those of a training.
    pub fn overview(&self, names: impl Fn(&str) -> Answer<usize>) -> Answer<Value> {
        let (mut captures, mut trainings, mut problems) = (vec![], vec![], vec![]);
        for run in self.names()? {
            let dir = self.dir(&run)?;
            let top = dir.join(TOP).join(TABLE).is_file();
            let mut problem = |refusal: &Refusal| {
                problems.push(json!({"run_id": run, "error": refusal.error, "hint": refusal.hint}));
            };
            let mut training = |capture: &str, meta: Option<Value>| {
                let names = meta.as_ref().map_or(Ok(0), |_| names(&run));
                let names = names.inspect_err(&mut problem).unwrap_or(0);
                trainings.push(json!({
                    "run_id": run, "capture": capture, "complete": meta.is_some(),
                    "top_sentences": top, "names": names, "meta": meta,
                }));
            };
            match kind(&dir) {
                Ok(Run::Training(meta)) => training(&meta.capture_run_id, Some(raw_meta(&dir)?)),
                Ok(Run::Begun(claim)) => training(&claim.capture_run_id, None),
                Ok(Run::Capture(meta)) => {
                    captures.push((run, meta.totals.is_some(), raw_meta(&dir)?));
                }
                Ok(Run::Other) => {}
                Err(failure) => problem(&failure.into()),
            }
        }
        let captures: Vec<Value> = captures
            .into_iter()
            .map(|(run, complete, meta)| {
                let mine = trainings.iter().filter(|t| t["capture"] == run.as_str());
                let mine: Vec<&Value> = mine.map(|t| &t["run_id"]).collect();
                json!({"run_id": run, "complete": complete, "trainings": mine, "meta": meta})
            })
            .collect();
        Ok(json!({"captures": captures, "trainings": trainings, "problems": problems}))
    }
}

/// A directory may have been renamed since.
fn renamed(meta: TrainingMeta, run_id: String) -> TrainingMeta {
    TrainingMeta { run_id, ..meta }
}

/// What a run's directory holds.
fn kind(dir: &Path) -> Result<Run> {
    if !dir.join(META).is_file() {
        return Ok(Claim::read(dir)?.map_or(Run::Other, Run::Begun));
    }
    let is_training = raw_meta(dir)?.get("capture_run_id").is_some();
    if is_training {
        return Ok(TrainingMeta::read(dir)?.map_or(Run::Other, Run::Training));
    }
    Ok(CaptureMeta::read(dir)?.map_or(Run::Other, Run::Capture))
}

/// A run's `meta.json` as it stands.
pub(super) fn raw_meta(dir: &Path) -> Result<Value> {
    let path = dir.join(META);
    let bytes = fs_err::read(&path)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| crate::stage::Failure::input(format!("`{}`: {e}", path.display())))
}

/// A name from outside, short enough for a message.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
