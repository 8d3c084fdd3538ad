//! Progress files: what each worker last said about itself, for `pipeline_status`.
//!
//! `progress/<stage>-<worker>.json` in the run's directory. They are hints, never truth: replaced
//! whole but without fsync, and a stage goes on where one cannot be written.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Context, Failure, Kind, Result, atomic};
use crate::slurm::Share;

/// The directory in a run's directory.
pub const DIRECTORY: &str = "progress";

/// Version of the files; readers refuse newer ones.
pub const SCHEMA: u32 = 1;

/// How often a file changes at most while its worker runs.
const EVERY: Duration = Duration::from_secs(2);

/// What a worker was doing when it last said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// At work.
    Running,
    /// Asked to stop, with its progress saved.
    Stopped,
    /// Finished.
    Done,
    /// Ended with an error, which is in the note.
    Failed,
}

/// A progress file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The stage's YAML section, which is also its job's name: `save_activations`.
    pub stage: String,
    /// The worker, from 0.
    pub worker: usize,
    /// All workers of the stage.
    pub workers: usize,
    /// What it was doing.
    pub state: State,
    /// What `done` and `total` count: `documents`, for instance.
    pub unit: String,
    /// Finished units, those of earlier processes included.
    pub done: u64,
    /// All units of this worker.
    pub total: u64,
    /// Rows written, by a capture.
    pub rows: u64,
    /// Shards committed, by a capture.
    pub shards: u64,
    /// Tokens computed, those of earlier processes included.
    pub tokens: u64,
    /// Tokens a second, of this process alone.
    pub tokens_per_second: f64,
    /// Seconds until the end at this rate; absent before the first unit and after the last.
    pub eta_seconds: Option<f64>,
    /// When this process began.
    pub started: Timestamp,
    /// When this was written.
    pub updated: Timestamp,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// SLURM's job, `123_4` for an element of an array; absent outside SLURM.
    pub job: Option<String>,
    /// How often the worker was started again before it was done.
    pub restarts: u32,
    /// A loss, an error: what else there is to say.
    pub note: String,
}

impl Heartbeat {
    /// Reads a progress file.
    ///
    /// # Errors
    /// An input failure for a file that is not one or is of a newer schema; I/O errors.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| Failure::input(format!("`{}`: {what}", path.display()));
        let bytes = fs_err::read(path)?;
        let this: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if this.schema > SCHEMA {
            let what = format!("schema is {}, this program knows up to {SCHEMA}", this.schema);
            return Err(bad(what).hint("use the version of the pipeline that wrote it"));
        }
        Ok(this)
    }
}

/// Writes one worker's progress file; clones write the same one.
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    beat: Heartbeat,
    /// Whether this process has the right to the file: two may be started for one worker.
    begun: bool,
    written: Instant,
    complained: bool,
}

impl Reporter {
    /// A reporter of `stage` in a run's directory; writes nothing yet.
    pub fn new(context: &Context, run_dir: &Path, stage: &str, share: Share) -> Self {
        let now = Timestamp::now();
        let beat = Heartbeat {
            schema: SCHEMA,
            stage: stage.to_owned(),
            worker: share.index,
            workers: share.count,
            state: State::Running,
            unit: String::new(),
            done: 0,
            total: 0,
            rows: 0,
            shards: 0,
            tokens: 0,
            tokens_per_second: 0.0,
            eta_seconds: None,
            started: now,
            updated: now,
            host: context.slurm.node.clone().unwrap_or_else(host),
            pid: std::process::id(),
            job: context.slurm.job(),
            restarts: context.slurm.restart_count.unwrap_or(0),
            note: String::new(),
        };
        let path = run_dir.join(DIRECTORY).join(format!("{stage}-{}.json", share.index));
        let (begun, complained) = (false, false);
        Self(Arc::new(Mutex::new(Inner { path, beat, begun, written: Instant::now(), complained })))
    }

    /// Does a worker's work and says how it ended. Where `work` never came to [`Self::begin`]
    /// because another process has the worker, that one's file is left alone.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn watch<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = work();
        self.ended(result.as_ref().err());
        result
    }

    /// Says that a worker is done, or why it is not; otherwise as [`Self::watch`].
    pub fn ended(&self, failure: Option<&Failure>) {
        let mut inner = self.lock();
        let (state, note) = match failure {
            None => (State::Done, None),
            Some(e) if e.kind == Kind::Stopped => (State::Stopped, None),
            Some(e) => (State::Failed, Some(e.source.to_string())),
        };
        if inner.begun || state == State::Failed {
            inner.beat.state = state;
            inner.beat.eta_seconds = None;
            inner.beat.note = note.unwrap_or_else(|| std::mem::take(&mut inner.beat.note));
            inner.write();
        }
    }

    /// Takes over the file, the first time: the worker is this process's. `done` of `total` units were done
    /// before. Work of another unit begins in the same way.
    pub fn begin(&self, unit: &str, done: u64, total: u64) {
        let mut inner = self.lock();
        if !inner.begun
            && let Ok(before) = Heartbeat::read(&inner.path)
        {
            let again = before.restarts + u32::from(before.state != State::Done);
            inner.beat.restarts = inner.beat.restarts.max(again);
        }
        inner.begun = true;
        inner.beat.unit = unit.to_owned();
        (inner.beat.done, inner.beat.total) = (done, total);
        inner.write();
    }

    /// Sets what the next write says, and writes now if the last one is old.
    pub fn update(&self, change: impl FnOnce(&mut Heartbeat)) {
        let mut inner = self.lock();
        change(&mut inner.beat);
        if inner.begun && inner.written.elapsed() >= EVERY {
            inner.write();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self) {
        self.beat.updated = Timestamp::now();
        self.written = Instant::now();
        let written = serde_json::to_vec_pretty(&self.beat)
            .map_err(std::io::Error::from)
            .and_then(|bytes| atomic::replace(&self.path, &bytes));
        if let Err(e) = written
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!("no progress file for pipeline_status: {e}");
        }
    }
}

/// This machine's name.
pub fn host() -> String {
    let name = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let known = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    known.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        slurm::SlurmEnv,
        stage::{ResolvedConfig, StopFlag},
    };

    const SHARE: Share = Share { index: 1, count: 3 };

    fn reporter(dir: &Path, slurm: SlurmEnv) -> Reporter {
        let config = ResolvedConfig::default();
        let context = Context { stop: StopFlag::default(), config, slurm, threads: 1 };
        Reporter::new(&context, dir, "save_activations", SHARE)
    }

    fn read(dir: &Path) -> Heartbeat {
        Heartbeat::read(&dir.join("progress/save_activations-1.json")).unwrap()
    }

    #[test]
    fn a_worker_says_how_it_ended_and_counts_its_starts() {
        let dir = tempfile::tempdir().unwrap();
        let start = |result: Result<()>| {
            let reporter = reporter(dir.path(), SlurmEnv::default());
            let said = reporter.watch(|| {
                reporter.begin("documents", 0, 9);
                assert_eq!(read(dir.path()).state, State::Running);
                reporter.update(|beat| beat.done = 4);
                result
            });
            (said.is_ok(), read(dir.path()))
        };
        let (_, beat) = start(Err(Failure::stopped("asked")));
        assert_eq!((beat.state, beat.restarts, beat.done), (State::Stopped, 0, 4));
        let (_, beat) = start(Err(Failure::input("torn")));
        assert_eq!((beat.state, beat.restarts, &beat.note[..]), (State::Failed, 1, "torn"));
        let (ok, beat) = start(Ok(()));
        assert_eq!((ok, beat.state, beat.restarts, &beat.note[..]), (true, State::Done, 2, ""));
        assert_eq!((beat.worker, beat.workers, beat.total), (1, 3, 9));
        assert_eq!(start(Ok(())).1.restarts, 2, "a repeated start of finished work is no restart");
    }

    #[test]
    fn a_second_process_leaves_the_file_of_the_first_alone() {
        let dir = tempfile::tempdir().unwrap();
        let second = reporter(dir.path(), SlurmEnv::default());
        let taken = second.watch(|| Err::<(), _>(Failure::stopped("another process")));
        assert!(taken.is_err() && !dir.path().join(DIRECTORY).exists());
    }

    #[test]
    fn slurm_names_job_and_node_and_counts_requeues() {
        let dir = tempfile::tempdir().unwrap();
        let slurm = SlurmEnv {
            job_id: Some(77),
            array_job_id: Some(70),
            array_task_id: Some(1),
            restart_count: Some(3),
            node: Some("n7".into()),
            ..SlurmEnv::default()
        };
        reporter(dir.path(), slurm).begin("documents", 0, 9);
        let beat = read(dir.path());
        assert_eq!((beat.job.as_deref(), &beat.host[..], beat.restarts), (Some("70_1"), "n7", 3));
    }

    #[test]
    fn a_file_that_cannot_be_written_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(DIRECTORY), "in the way").unwrap();
        let reporter = reporter(dir.path(), SlurmEnv::default());
        let work = || {
            reporter.begin("documents", 0, 9);
            Ok(())
        };
        reporter.watch(work).unwrap();
    }

    #[test]
    fn newer_and_broken_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        reporter(dir.path(), SlurmEnv::default()).begin("documents", 0, 9);
        let path = dir.path().join("progress/save_activations-1.json");
        let good = fs_err::read_to_string(&path).unwrap();
        for bad in [good.replace("\"schema\": 1", "\"schema\": 2"), good[..40].to_owned()] {
            fs_err::write(&path, bad).unwrap();
            let failure = Heartbeat::read(&path).unwrap_err();
            assert_eq!(failure.kind, Kind::Input);
            assert!(failure.source.to_string().contains("save_activations-1.json"));
        }
    }
}
