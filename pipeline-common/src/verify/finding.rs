//! What can be wrong with a capture run.

use serde::Serialize;

/// A kind of damage; its name in snake case is what people and programs see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// A committed file is not there.
    Missing,
    /// A file cannot be read.
    Unreadable,
    /// A file's length is not the manifest's.
    Length,
    /// A file's blake3 is not the manifest's.
    Digest,
    /// A file is no safetensors file, or lacks tensors, or they have other types or shapes.
    Header,
    /// A file's metadata names another hook, scale or run.
    Metadata,
    /// A file's rows or sentences are not as many as the manifest says.
    Rows,
    /// Values that are NaN or infinite.
    NotFinite,
    /// The manifest's statistics are not those of the rows.
    Statistics,
    /// Documents of a token file do not ascend or are not the shard's.
    Documents,
    /// Documents that no shard covers.
    Gap,
    /// Documents that several shards cover.
    Overlap,
    /// A line of a manifest that cannot be read or names what the run does not have.
    Line,
    /// `manifest.jsonl` differs from the workers' lines.
    Manifest,
    /// The totals in `meta.json` are not the sums of the shards.
    Totals,
    /// A file that no line names.
    Foreign,
}

impl Damage {
    /// The name that is shown.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Whether `--repair` and the next run of 01 mend it.
    pub const fn is_repairable(self) -> bool {
        !matches!(self, Self::Foreign)
    }
}

/// A shard of a run: worker and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ShardId {
    /// The worker, from 0.
    pub worker: usize,
    /// The shard's number within the worker, from 0.
    pub shard: usize,
}

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.worker, self.shard)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Damage,
    /// Where, relative to the run's directory.
    pub file: String,
    /// The damaged shard, where its files have to be captured again.
    pub shard: Option<ShardId>,
    /// Expected and found.
    pub detail: String,
}

impl Finding {
    /// Damage that is not a shard's own.
    pub fn new(kind: Damage, file: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, file: file.into(), shard: None, detail: detail.into() }
    }
}
