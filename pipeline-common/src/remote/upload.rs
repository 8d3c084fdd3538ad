//! Uploads behind the capture's back.
//!
//! A worker hands over its whole list of shards after each commit; the thread uploads what is
//! missing. A newer list takes the place of one that waits. Where uploading falls behind by more
//! than a few shards the worker waits, so that local disk stays bounded.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{RemoteError, Stream};
use crate::{shard::Committed, stage::StopFlag};

/// Shards that may wait for their upload.
const PENDING: usize = 3;

/// How long a process that was asked to stop goes on uploading; SLURM kills it some time later.
const DRAIN: Duration = Duration::from_secs(60);

/// How often a waiting worker looks at the stop flag.
const TICK: Duration = Duration::from_millis(200);

/// A thread that keeps a stream's objects up to date.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    stop: StopFlag,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The list to upload next.
    waiting: Option<Vec<Committed>>,
    /// Shards handed over, and shards uploaded.
    handed: usize,
    uploaded: usize,
    closed: bool,
    /// What became of the thread, until somebody takes it.
    ended: Option<Result<Stream, RemoteError>>,
}

impl Shared {
    /// A panic elsewhere leaves the state as it was: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Uploader {
    /// Starts the thread; the stream holds `uploaded` shards.
    ///
    /// # Errors
    /// An I/O error if there can be no thread.
    pub fn start(stream: Stream, uploaded: usize, stop: StopFlag) -> Result<Self, RemoteError> {
        let state = State { waiting: None, handed: uploaded, uploaded, closed: false, ended: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mine = Arc::clone(&shared);
        std::thread::Builder::new().name("uploads".into()).spawn(move || {
            let ended = run(stream, &mine);
            mine.lock().ended = Some(ended);
            mine.changed.notify_all();
        })?;
        Ok(Self { shared, stop })
    }

    /// Hands over the stream's shards; waits where uploading is far behind, unless a stop was asked
    /// for.
    ///
    /// # Errors
    /// What ended the thread.
    pub fn hand_over(&self, lines: Vec<Committed>) -> Result<(), RemoteError> {
        let mut state = self.shared.lock();
        state.handed = lines.len();
        state.waiting = Some(lines);
        self.shared.changed.notify_all();
        while state.handed > state.uploaded + PENDING && !self.stop.requested() {
            if let Some(Err(e)) = state.ended.take_if(|ended| ended.is_err()) {
                return Err(e);
            }
            state = self.shared.wait(state);
        }
        match state.ended.take_if(|ended| ended.is_err()) {
            Some(Err(e)) => Err(e),
            _ => Ok(()),
        }
    }

    /// Waits for all uploads, a minute at most if a stop was asked for; `None` if that was too
    /// short: the next start uploads the rest.
    ///
    /// # Errors
    /// What ended the thread.
    pub fn finish(self) -> Result<Option<Stream>, RemoteError> {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        if state.handed > state.uploaded {
            tracing::info!("waiting for the uploads of {} shards", state.handed - state.uploaded);
        }
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(ended) = state.ended.take() {
                return ended.map(Some);
            }
            if self.stop.requested() && asked.get_or_insert_with(Instant::now).elapsed() > DRAIN {
                return Ok(None);
            }
            state = self.shared.wait(state);
        }
    }
}

fn run(mut stream: Stream, shared: &Shared) -> Result<Stream, RemoteError> {
    loop {
        let mut state = shared.lock();
        let lines = loop {
            if let Some(lines) = state.waiting.take() {
                break lines;
            }
            if state.closed {
                return Ok(stream);
            }
            state = shared.wait(state);
        };
        drop(state);
        let count = lines.len();
        stream.sync(lines)?;
        shared.lock().uploaded = count;
        shared.changed.notify_all();
    }
}
