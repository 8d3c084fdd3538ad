//! What a store says about a run: its records, its manifests, its progress files.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;

use crate::{
    capture::{CaptureMeta, worker::manifest_path},
    shard::manifest,
    stage::{
        Failure, Result,
        heartbeat::{self, Heartbeat},
        meta::META,
        store::{Pointer, Store},
    },
    text::Streams,
};

/// Everything about a capture and the trainings made from it.
#[derive(Debug)]
pub struct Facts {
    /// The capture's name.
    pub run_id: String,
    /// Its workers.
    pub workers: Vec<WorkerFacts>,
    /// Trainings, by name.
    pub trainings: Vec<TrainingFacts>,
    /// Files that cannot be read, and why.
    pub unreadable: Vec<String>,
}

/// One worker of the capture.
#[derive(Debug)]
pub struct WorkerFacts {
    /// Documents of its stream.
    pub documents: u64,
    /// Documents that are committed.
    pub committed: u64,
    /// What it last said.
    pub beat: Option<Heartbeat>,
}

/// One training.
#[derive(Debug)]
pub struct TrainingFacts {
    /// Its name.
    pub run_id: String,
    /// Whether its record says that it is complete.
    pub complete: bool,
    /// What its stages last said.
    pub beats: Vec<Heartbeat>,
}

/// What a training run's files say about where it came from.
#[derive(Deserialize)]
struct Lineage {
    capture_run_id: String,
}

impl Facts {
    /// Reads everything there is about a run.
    ///
    /// # Errors
    /// A run that is not there or is no capture.
    pub fn gather(store: &Store, run_id: Option<&str>) -> Result<Self> {
        let (run_id, dir) = find(store, run_id)?;
        let meta = CaptureMeta::read(&dir)?.ok_or_else(|| {
            Failure::input(format!("`{}` is no capture run: it has no {META}", dir.display()))
        })?;
        let mut unreadable = vec![];
        let beats = beats(&dir, &mut unreadable);
        let streams = match Streams::load(&dir) {
            Ok(streams) => streams,
            // The first worker writes it after meta.json.
            Err(_) => Streams::split(meta.dataset.documents, meta.workers as u64),
        };
        let worker = |i: u64| {
            let stream = streams.range(i);
            let beat = beats.iter().find(|beat| beat.worker as u64 == i);
            let committed = committed(&dir, i as usize).unwrap_or_else(|e| {
                unreadable.push(e.source.to_string());
                0
            });
            let (documents, beat) = (stream.end - stream.start, beat.cloned());
            WorkerFacts { documents, committed, beat }
        };
        let workers = (0..streams.count).map(worker).collect();
        let trainings = trainings(store, &run_id, &mut unreadable);
        Ok(Self { run_id, workers, trainings, unreadable })
    }

    /// All progress files.
    pub fn beats(&self) -> impl Iterator<Item = &Heartbeat> {
        let capture = self.workers.iter().filter_map(|worker| worker.beat.as_ref());
        capture.chain(self.trainings.iter().flat_map(|training| &training.beats))
    }
}

/// The run that is asked for, the newest complete one, or the newest one where none is complete.
fn find(store: &Store, run_id: Option<&str>) -> Result<(String, PathBuf)> {
    let found = store.find(run_id, Pointer::Capture);
    if run_id.is_some() || found.is_ok() || store.root().join(Pointer::Capture.file()).exists() {
        return found;
    }
    let begun = |dir: &PathBuf| matches!(CaptureMeta::read(dir), Ok(Some(_)));
    let changed = |dir: &PathBuf| {
        let changed = fs_err::metadata(dir.join(META)).and_then(|meta| meta.modified());
        changed.unwrap_or(SystemTime::UNIX_EPOCH)
    };
    match runs(store).into_iter().filter(begun).max_by_key(changed) {
        Some(dir) => Ok((name(&dir), dir)),
        None => found,
    }
}

fn runs(store: &Store) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(store.root().join("runs")).into_iter().flatten().flatten();
    let mut runs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    runs.sort();
    runs
}

fn name(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn trainings(store: &Store, capture: &str, unreadable: &mut Vec<String>) -> Vec<TrainingFacts> {
    let of_capture = |dir: &PathBuf| {
        ["config.json", META].iter().any(|file| {
            let text = fs_err::read(dir.join(file)).unwrap_or_default();
            serde_json::from_slice::<Lineage>(&text).is_ok_and(|l| l.capture_run_id == capture)
        })
    };
    let facts = |dir: PathBuf| TrainingFacts {
        run_id: name(&dir),
        complete: dir.join(META).exists(),
        beats: beats(&dir, unreadable),
    };
    runs(store).into_iter().filter(of_capture).map(facts).collect()
}

/// The progress files of a run, in order; a directory that is missing has none.
fn beats(dir: &Path, unreadable: &mut Vec<String>) -> Vec<Heartbeat> {
    let entries = fs_err::read_dir(dir.join(heartbeat::DIRECTORY)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("json")))
        .collect();
    files.sort();
    let mut beats = vec![];
    for file in files {
        match Heartbeat::read(&file) {
            Ok(beat) => beats.push(beat),
            Err(e) => unreadable.push(e.source.to_string()),
        }
    }
    beats
}

/// Documents of a worker whose shards are committed and not marked for recapture.
fn committed(dir: &Path, worker: usize) -> Result<u64> {
    let mut lines = vec![];
    for line in manifest::read(&manifest_path(dir, worker))? {
        lines.pop_if(|last: &mut crate::shard::Committed| last.unfinished);
        lines.push(line);
    }
    let standing = lines.iter().filter(|line| !line.recapture);
    Ok(standing.map(|line| line.end_document.saturating_sub(line.first_document)).sum())
}
