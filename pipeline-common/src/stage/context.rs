//! What a stage is given besides its arguments.

use std::io::{IsTerminal, Write};

use super::{Failure, Progress, ResolvedConfig, Result, StopFlag, progress::Display};
use crate::slurm::SlurmEnv;

/// The surroundings of a running stage.
#[derive(Clone, Debug)]
pub struct Context {
    /// Set when someone asked the stage to stop.
    pub stop: StopFlag,
    /// Every setting with its origin.
    pub config: ResolvedConfig,
    /// What SLURM says about this process.
    pub slurm: SlurmEnv,
    /// Threads to compute with.
    pub threads: usize,
}

impl Context {
    /// Starts a progress display: a bar on a terminal, a line every 30 s elsewhere.
    ///
    /// `total` and [`Progress::advance`] count the same unit, for instance documents; rates are
    /// in tokens.
    pub fn progress(&self, doing: &str, total: u64, unit: &'static str) -> Progress {
        let display = if std::io::stderr().is_terminal() { Display::Bar } else { Display::Lines };
        Progress::new(doing, total, unit, display)
    }

    /// As [`Self::progress`], always as lines: for one of several displays at a time.
    pub fn progress_lines(&self, doing: &str, total: u64, unit: &'static str) -> Progress {
        Progress::new(doing, total, unit, Display::Lines)
    }

    /// Prints a result to standard output; the only place that does. A closed pipe is not an error.
    pub fn print(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _closed_pipe = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Leaves with exit code 75 if a stop was asked for; call it where everything is committed.
    ///
    /// # Errors
    /// [`Failure::stopped`] once the flag is set.
    pub fn leave_if_asked(&self, saved: &str) -> Result<()> {
        if self.stop.requested() {
            Err(Failure::stopped(format!("stopped on request; {saved}")))
        } else {
            Ok(())
        }
    }
}
