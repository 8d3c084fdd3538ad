//! The run that all workers of a capture share: what it is, and who completes it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::{meta::CaptureMeta, meta::SCHEMA, worker};
use crate::{
    remote::{RemoteRun, client::Version},
    stage::{
        Context, Result, atomic,
        lock::Lock,
        meta::{self, META},
        progress::thousands,
        store::{Pointer, Store},
    },
};

/// A run, as one of its workers sees it.
pub(super) struct Run {
    pub store: Store,
    pub meta: CaptureMeta,
    pub dir: PathBuf,
    pub remote: Option<RemoteRun>,
    /// The remote meta.json when this process began.
    begun: Option<Version>,
}

/// Held while a worker writes files that belong to the whole run.
pub(crate) fn run_lock(run_dir: &Path) -> Result<Lock> {
    Lock::wait(&run_dir.join("run.lock"))
}

impl Run {
    pub fn new(store: Store, meta: CaptureMeta, dir: PathBuf, remote: Option<RemoteRun>) -> Self {
        Self { store, meta, dir, remote, begun: None }
    }

    /// Records in the remote store what the run is, or compares with what is recorded there, which
    /// is taken over where this node knows less. Whether the run is complete wherever it has to be.
    pub fn agree(&mut self, context: &Context) -> Result<bool> {
        let Some(remote) = &self.remote else { return Ok(true) };
        let local = CaptureMeta::read(&self.dir)?;
        let mine = CaptureMeta { totals: None, ..local.as_ref().unwrap_or(&self.meta).clone() };
        let there = remote.agree(META, &atomic::json(&mine)?)?;
        let place = remote.client().url(&remote.key(META));
        self.begun = Some(there.version);
        let there: CaptureMeta = meta::parse(&there.bytes, &place, SCHEMA, "a capture run")?;
        self.must_match(context, &there)?;
        let repair = worker::is_under_repair(&self.dir, self.meta.workers)?;
        let complete = there.totals.is_some() && !repair;
        if local.is_none_or(|local| complete && local.totals.is_none()) {
            fs_err::create_dir_all(&self.dir)?;
            let _lock = run_lock(&self.dir)?;
            there.write(&self.dir)?;
        }
        Ok(complete)
    }

    /// What is recorded of the run, compared with what this process was told; `begin` settles what
    /// the first worker records.
    pub fn claim(
        &self,
        context: &Context,
        begin: impl FnOnce() -> Result<CaptureMeta>,
    ) -> Result<CaptureMeta> {
        let stored = match CaptureMeta::read(&self.dir)? {
            Some(stored) => stored,
            None => {
                fs_err::create_dir_all(&self.dir)?;
                let _lock = run_lock(&self.dir)?;
                match CaptureMeta::read(&self.dir)? {
                    Some(stored) => stored,
                    None => {
                        let meta = begin()?;
                        meta.write(&self.dir)?;
                        return Ok(meta);
                    }
                }
            }
        };
        self.must_match(context, &stored)?;
        Ok(stored)
    }

    fn must_match(&self, context: &Context, stored: &CaptureMeta) -> Result<()> {
        context.config.must_match(&stored.config, &stored.run_id, "RUN_ID")?;
        self.meta.must_match(stored)
    }

    /// Completes the run if stream `index` was the last.
    pub fn finish(mut self, index: usize, streams: &[Range<u64>]) -> Result<()> {
        // Before the lines are read: what is marked for recapture meanwhile must not be published.
        let _lock = run_lock(&self.dir)?;
        let Some(lines) = worker::all_committed(&self.dir, self.remote.as_ref(), streams)? else {
            tracing::info!("stream {index} is done, others are not");
            return Ok(());
        };
        match CaptureMeta::read(&self.dir)?.filter(|stored| stored.totals.is_some()) {
            // Of several that end at once one completes the run; a remote store sees to that itself.
            Some(_) if self.remote.is_none() => {
                tracing::info!("stream {index} is done, another worker completed the run");
                return Ok(());
            }
            Some(stored) => self.meta = stored,
            None => {
                let (totals, statistics) = worker::complete(&self.dir, &lines)?;
                for (hook, statistics) in self.meta.hooks.iter_mut().zip(statistics) {
                    hook.statistics = Some(statistics);
                }
                self.meta.totals = Some(totals);
                self.meta.write(&self.dir)?;
            }
        }
        if let (Some(remote), Some(begun)) = (&self.remote, &self.begun)
            && remote.complete(&lines, &atomic::json(&self.meta)?, begun)?
        {
            tracing::info!("all is in `{}`", remote.client().url(&remote.key("")));
        }
        self.publish()?;
        self.report();
        Ok(())
    }

    /// Makes the complete run the newest.
    pub fn publish(&self) -> Result<()> {
        if let Some(remote) = &self.remote {
            remote.publish(Pointer::Capture)?;
        }
        self.store.publish(Pointer::Capture, &self.meta.run_id)
    }

    /// What the complete run holds, how many tokens were dropped for what, what was saturated.
    fn report(&self) {
        let totals = self.meta.totals.unwrap_or_default();
        tracing::info!(
            "run `{}` is complete: {} rows in {} shards, {}",
            self.meta.run_id,
            thousands(totals.rows),
            totals.shards,
            self.dir.display()
        );
        let dropped = totals.dropped;
        let counts = [
            (dropped.special, "special"),
            (dropped.first, "first positions"),
            (dropped.norm, "rows of too large a norm"),
        ];
        let said: Vec<String> = counts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{} {what}", thousands(*n)))
            .collect();
        if !said.is_empty() {
            tracing::info!("tokens without rows: {}", said.join(", "));
        }
        for hook in &self.meta.hooks {
            if let Some(s) = hook.statistics.filter(|s| s.saturated > 0) {
                let (n, rows) = (thousands(s.saturated), thousands(s.saturated_rows));
                tracing::warn!("hook `{}`: {n} elements in {rows} rows were beyond f16", hook.name);
            }
        }
    }
}
