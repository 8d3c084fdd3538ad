//! `meta.json` of a capture run: what was captured, from what, how.
//!
//! Holds no time and no host, so that equal captures are equal files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::policy::PolicyRecord;
use crate::{
    model::ModelRecord,
    shard::{Committed, Dropped},
    stage::{
        Failure, ResolvedConfig, Result, atomic,
        meta::{self, META},
        store::derived_name,
    },
    text::DatasetRecord,
};

/// Version of this file; readers refuse newer ones.
pub const SCHEMA: u32 = 1;

/// What a capture run says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureMeta {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The run's name.
    pub run_id: String,
    /// The model.
    pub model: ModelRecord,
    /// The hooks, in the order of the manifest's files.
    pub hooks: Vec<HookRecord>,
    /// The documents.
    pub dataset: DatasetRecord,
    /// Streams, one per worker.
    pub workers: usize,
    /// What activations were multiplied by before they were stored.
    pub activation_scale: f32,
    /// What got rows and how they were stored; absent in runs of versions before policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRecord>,
    /// Every setting that decides the result, with its origin.
    pub config: ResolvedConfig,
    /// Present once every worker is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
}

/// One captured hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookRecord {
    /// Hugging Face module path.
    pub name: String,
    /// TransformerLens name.
    pub transformer_lens: String,
    /// `resid_mid` and the like, where the point has such a name.
    pub alias: Option<String>,
    /// Directory of its shards, relative to the run.
    pub directory: String,
    /// Width of a row.
    pub d_in: usize,
    /// Statistics over all rows, present once the run is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
}

/// Statistics of a hook's stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Mean Euclidean norm of a row.
    pub mean_norm: f64,
    /// Root of the mean squared norm.
    pub rms_norm: f64,
    /// Largest magnitude of any element.
    pub max_abs: f64,
    /// Elements that did not fit f16 and were stored as its largest number.
    #[serde(default, skip_serializing_if = "crate::shard::stats::is_zero")]
    pub saturated: u64,
    /// Rows with such an element.
    #[serde(default, skip_serializing_if = "crate::shard::stats::is_zero")]
    pub saturated_rows: u64,
}

/// Sums over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Shards.
    pub shards: u64,
    /// Sentences with at least one row.
    pub sentences: u64,
    /// Rows of each hook.
    pub rows: u64,
    /// Tokens the model saw.
    pub tokens_seen: u64,
    /// Those without a row, by the policy that dropped them.
    #[serde(default)]
    pub dropped: DroppedTokens,
}

/// Tokens without a row, by the first policy that dropped them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedTokens {
    /// Special tokens.
    pub special: u64,
    /// Among the first positions of their sentence.
    pub first: u64,
    /// With a row of too large a norm.
    pub norm: u64,
}

impl Totals {
    /// The sums of these lines.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a Committed>) -> Self {
        lines.into_iter().fold(Self::default(), |sum, line| sum.with(line))
    }

    /// With one more shard.
    #[must_use]
    pub const fn with(mut self, line: &Committed) -> Self {
        self.shards += 1;
        self.sentences += line.sentences;
        self.rows += line.rows;
        self.tokens_seen += line.tokens_seen;
        let Dropped { first, norm } = line.dropped;
        self.dropped.first += first;
        self.dropped.norm += norm;
        // Whatever else the model saw was special.
        self.dropped.special += line.tokens_seen.saturating_sub(line.rows + first + norm);
        self
    }
}

impl CaptureMeta {
    /// Reads a run's file; `None` where there is none.
    ///
    /// # Errors
    /// As [`meta::read`].
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        meta::read(run_dir, SCHEMA, "a capture run")
    }

    /// Reads the file of a run that must be complete.
    ///
    /// # Errors
    /// An input failure if it is missing or the capture has not finished.
    pub fn read_complete(run_dir: &Path) -> Result<Self> {
        let meta = Self::read(run_dir)?.ok_or_else(|| {
            Failure::input(format!("`{}` is no capture run: it has no {META}", run_dir.display()))
        })?;
        if meta.totals.is_none() {
            return Err(Failure::input(format!("run `{}` is not complete", meta.run_id))
                .hint("run 01_save_activations again with this RUN_ID until it exits with 0"));
        }
        Ok(meta)
    }

    /// Replaces the run's file.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        Ok(atomic::write_json(&run_dir.join(META), self)?)
    }

    /// A name made from what is captured: the same capture finds its run again.
    pub(super) fn default_name(&self) -> String {
        let settings = format!("{:?} {:?} {:?}", self.model, self.dataset, self.config.values());
        derived_name(&self.model.id, &settings)
    }

    /// Refuses to go on where model, text, workers or policies are not those the run was begun with.
    pub(super) fn must_match(&self, stored: &Self) -> Result<()> {
        let differ = |what: &str, before: String, now: String| {
            Err(Failure::usage(format!(
                "run `{}` was begun with {what} {before}, now it is {now}",
                stored.run_id
            ))
            .hint("restore it, or give RUN_ID a new name"))
        };
        if self.model != stored.model {
            return differ("model", format!("{:?}", stored.model), format!("{:?}", self.model));
        }
        if self.dataset != stored.dataset {
            return differ(
                "dataset",
                format!("{:?}", stored.dataset),
                format!("{:?}", self.dataset),
            );
        }
        if self.workers != stored.workers {
            return differ("WORKERS", stored.workers.to_string(), self.workers.to_string());
        }
        if let (Some(now), Some(before)) = (&self.policy, &stored.policy)
            && !now.same(before)
        {
            return differ("policies", format!("{before:?}"), format!("{now:?}"));
        }
        Ok(())
    }

    /// The hook that training or reading means: `wanted` by any of its names, or the only one.
    ///
    /// # Errors
    /// A usage failure that lists the run's hooks.
    pub fn hook(&self, wanted: Option<&str>) -> Result<&HookRecord> {
        let named = |h: &&HookRecord| {
            wanted.is_none_or(|name| {
                [&h.name, &h.transformer_lens, &h.directory].iter().any(|n| *n == name)
                    || h.alias.as_deref() == Some(name)
            })
        };
        let matching: Vec<&HookRecord> = self.hooks.iter().filter(named).collect();
        if let [hook] = matching[..] {
            return Ok(hook);
        }
        let names: Vec<&str> = self.hooks.iter().map(|h| h.name.as_str()).collect();
        let asked =
            wanted.map_or_else(|| "HOOK is not set".to_owned(), |name| format!("HOOK is `{name}`"));
        let what = format!(
            "{asked}, which is {} of the {} hooks of run `{}`",
            matching.len(),
            names.len(),
            self.run_id
        );
        Err(Failure::usage(what).hint(format!("set HOOK to one of {}", names.join(", "))))
    }
}
