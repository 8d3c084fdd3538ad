//! SIGTERM, SIGINT and SIGUSR1 ask a stage to stop; loops look at the flag at safe points.
//!
//! The first signal sets the flag. A second one, at least a second later (SLURM sends SIGCONT and
//! SIGTERM in bursts), ends the process at once with exit code 75.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use super::Kind;

const BURST: Duration = Duration::from_secs(1);
/// How often a pause looks at the flag.
const TICK: Duration = Duration::from_millis(50);

/// Set once someone asked the stage to stop.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether to commit and leave at the next safe point.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for a stop, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits for so long, or until a stop is requested.
    pub fn wait(&self, pause: Duration) {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.requested() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    /// Installs the handlers; call it first in `main`, since an unhandled SIGUSR1 kills.
    ///
    /// # Errors
    /// When the operating system refuses a handler or the watching thread.
    pub fn install() -> io::Result<Self> {
        let flag = Self::default();
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
        let watched = flag.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        watched.request();
                        tracing::warn!(signal, "asked to stop: leaving at the next safe point");
                    }
                    Some(at) if at.elapsed() < BURST => {}
                    Some(_) => std::process::exit(Kind::Stopped.exit_code().into()),
                }
            }
        })?;
        Ok(flag)
    }
}
