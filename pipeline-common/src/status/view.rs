//! The rows of the table: what progress files, manifests and SLURM say together.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{
    gather::{Facts, TrainingFacts, WorkerFacts},
    queue::{Job, Queue},
};
use crate::{
    capture::SaveActivations,
    sae::TrainSae,
    stage::{
        Stage,
        heartbeat::{self, Heartbeat, State},
    },
    top::TopSentences,
};

/// What a worker is doing now, as far as anybody can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// At work.
    Running,
    /// At work, but silent for long.
    Stalled,
    /// Gone without a word.
    Lost,
    /// Ended with an error.
    Failed,
    /// A state of SLURM's, in its own words.
    Slurm(String),
    /// Asked to stop, and not queued again.
    Stopped,
    /// Not begun.
    Waiting,
    /// Finished.
    Done,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Stalled => f.write_str("stalled!"),
            Self::Lost => f.write_str("lost!"),
            Self::Failed => f.write_str("failed!"),
            Self::Slurm(state) => f.write_str(state),
            Self::Stopped => f.write_str("stopped"),
            Self::Waiting => f.write_str("waiting"),
            Self::Done => f.write_str("done"),
        }
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.to_string().trim_end_matches('!'))
    }
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The worker, from 0.
    pub worker: usize,
    /// What it is doing.
    pub state: Shown,
    /// Why its job waits, how it ended, or what failed.
    pub reason: String,
    /// SLURM's job.
    pub job: Option<String>,
    /// Finished units.
    pub done: u64,
    /// All units; 0 where nobody knows yet.
    pub total: u64,
    /// While it is at work.
    pub tokens_per_second: Option<f64>,
    /// Seconds to its end.
    pub eta_seconds: Option<f64>,
    /// How often it was started again.
    pub restarts: u32,
    /// Seconds since it last said something.
    pub heard_seconds: Option<f64>,
    /// Its machine.
    pub host: Option<String>,
    /// What it last said of itself.
    pub heartbeat: Option<Heartbeat>,
}

/// The workers of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageRows {
    /// The stage.
    pub stage: &'static str,
    /// The run whose directory it writes to; absent before it has one.
    pub run_id: Option<String>,
    /// Its workers.
    pub workers: Vec<Row>,
}

/// Everything that is shown.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// The capture.
    pub run_id: String,
    /// When it was looked at.
    pub at: Timestamp,
    /// Stages that have begun or are queued.
    pub stages: Vec<StageRows>,
    /// What could not be asked.
    pub notes: Vec<String>,
    /// Files that cannot be read, and why.
    pub unreadable: Vec<String>,
}

/// What rows are judged by.
struct Judge<'a> {
    queue: &'a Queue,
    now: Timestamp,
    stall_after: f64,
    host: String,
}

impl View {
    /// Asks SLURM and puts everything together.
    pub fn new(facts: Facts, stall_after: f64) -> Self {
        let ids: BTreeSet<String> = facts.beats().filter_map(|beat| beat.job.clone()).collect();
        let queue = Queue::ask(&ids);
        Self::of(facts, &queue, stall_after, Timestamp::now())
    }

    fn of(facts: Facts, queue: &Queue, stall_after: f64, now: Timestamp) -> Self {
        let judge = Judge { queue, now, stall_after, host: heartbeat::host() };
        let mut stages = vec![StageRows {
            stage: SaveActivations::SECTION,
            run_id: Some(facts.run_id.clone()),
            workers: judge.capture(&facts.workers),
        }];
        for stage in [TrainSae::SECTION, TopSentences::SECTION] {
            for training in &facts.trainings {
                stages.extend(judge.training(stage, training));
            }
            let taken = |job: &&Job| !stages.iter().any(|s| s.has_job(&job.id));
            let queued: Vec<Row> =
                queue.named(stage).filter(taken).map(|job| judge.queued(job)).collect();
            if !queued.is_empty() {
                stages.push(StageRows { stage, run_id: None, workers: queued });
            }
        }
        let (run_id, unreadable) = (facts.run_id, facts.unreadable);
        Self { run_id, at: now, stages, notes: queue.notes.clone(), unreadable }
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.stages.iter().flat_map(|stage| &stage.workers)
    }
}

impl StageRows {
    fn has_job(&self, id: &str) -> bool {
        self.workers.iter().any(|row| row.job.as_deref() == Some(id))
    }
}

impl Judge<'_> {
    fn capture(&self, workers: &[WorkerFacts]) -> Vec<Row> {
        let row = |(i, worker): (usize, &WorkerFacts)| {
            let complete = worker.committed == worker.documents;
            let mut row = match &worker.beat {
                // A stream that is marked for recapture is not done, whatever its worker said.
                Some(beat) if beat.state == State::Done && !complete => self.waiting(i),
                Some(beat) => self.row(beat),
                None => self.waiting(i),
            };
            if row.state == Shown::Waiting {
                (row.done, row.total) = (worker.committed, worker.documents);
                if complete {
                    row.state = Shown::Done;
                } else if let Some(job) = self.queued_for(i, workers) {
                    let queued = self.queued(job);
                    (row.state, row.reason, row.job) = (queued.state, queued.reason, queued.job);
                }
            }
            row
        };
        workers.iter().enumerate().map(row).collect()
    }

    /// The queued job that will be worker `i`: that element of an array, or the only job.
    fn queued_for(&self, i: usize, workers: &[WorkerFacts]) -> Option<&Job> {
        self.queue.named(SaveActivations::SECTION).find(|job| match job.element() {
            Some(element) => element == i,
            None => workers.len() == 1,
        })
    }

    fn training(&self, stage: &'static str, training: &TrainingFacts) -> Option<StageRows> {
        let beats = training.beats.iter().filter(|beat| beat.stage == stage);
        let mut workers: Vec<Row> = beats.map(|beat| self.row(beat)).collect();
        if workers.is_empty() && stage == TrainSae::SECTION {
            let mut row = self.waiting(0);
            if training.complete {
                row.state = Shown::Done;
            }
            workers.push(row);
        }
        let run_id = Some(training.run_id.clone());
        (!workers.is_empty()).then_some(StageRows { stage, run_id, workers })
    }

    fn waiting(&self, worker: usize) -> Row {
        Row {
            worker,
            state: Shown::Waiting,
            reason: String::new(),
            job: None,
            done: 0,
            total: 0,
            tokens_per_second: None,
            eta_seconds: None,
            restarts: 0,
            heard_seconds: None,
            host: None,
            heartbeat: None,
        }
    }

    fn queued(&self, job: &Job) -> Row {
        Row {
            state: Shown::Slurm(job.state.clone()),
            reason: job.reason.clone(),
            job: Some(job.id.clone()),
            ..self.waiting(job.element().unwrap_or(0))
        }
    }

    fn row(&self, beat: &Heartbeat) -> Row {
        let state = self.state(beat);
        // What a silent worker last said of its speed is no longer true.
        let at_work = state == Shown::Running;
        let job = beat.job.as_deref().and_then(|id| self.queue.job(id));
        let reason = match (&state, job) {
            (Shown::Slurm(_), Some(job)) => job.reason.clone(),
            (Shown::Lost, Some(job)) => job.state.clone(),
            (Shown::Failed, _) => beat.note.clone(),
            _ => String::new(),
        };
        Row {
            worker: beat.worker,
            reason,
            job: beat.job.clone(),
            done: beat.done,
            total: beat.total,
            tokens_per_second: at_work.then_some(beat.tokens_per_second),
            eta_seconds: beat.eta_seconds.filter(|_| at_work),
            restarts: beat.restarts,
            heard_seconds: Some(self.silence(beat)),
            host: Some(beat.host.clone()),
            heartbeat: Some(beat.clone()),
            state,
        }
    }

    /// Seconds; clocks of nodes differ, but nobody was heard in the future.
    fn silence(&self, beat: &Heartbeat) -> f64 {
        self.now.duration_since(beat.updated).as_secs_f64().max(0.0)
    }

    fn state(&self, beat: &Heartbeat) -> Shown {
        let job = beat.job.as_deref().and_then(|id| self.queue.job(id));
        let slurm = job.filter(|job| !job.has_ended() && job.state != "RUNNING");
        match (beat.state, slurm) {
            (State::Done, _) => Shown::Done,
            (State::Failed, _) => Shown::Failed,
            (_, Some(job)) => Shown::Slurm(job.state.clone()),
            (State::Stopped, None) => Shown::Stopped,
            (State::Running, None) if self.is_gone(beat, job) => Shown::Lost,
            (State::Running, None) if self.silence(beat) > self.stall_after => Shown::Stalled,
            (State::Running, None) => Shown::Running,
        }
    }

    /// Whether the process of a file that says `running` has ended.
    fn is_gone(&self, beat: &Heartbeat, job: Option<&Job>) -> bool {
        match (&beat.job, job) {
            (Some(_), Some(job)) => job.has_ended(),
            (Some(_), None) => self.queue.answered,
            // Outside SLURM only this machine's own processes can be looked at.
            (None, _) => beat.host == self.host && !process_exists(beat.pid),
        }
    }
}

fn process_exists(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}
