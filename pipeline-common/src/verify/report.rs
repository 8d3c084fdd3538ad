//! What was found, for people and for programs.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Finding, ShardId, repair::Repair, run::Run};
use crate::stage::{
    Failure, Result,
    progress::{bytes, thousands},
};

/// The result of one verification.
pub struct Report {
    /// The run's facts that a repair does not change.
    run_id: String,
    workers: usize,
    settings: Vec<(String, String)>,
    complete: bool,
    shards: usize,
    marked: usize,
    files: usize,
    bytes: u64,
    fast: bool,
    /// Sorted.
    pub findings: Vec<Finding>,
    /// Present after a repair.
    pub repaired: Option<Repair>,
}

impl Report {
    /// The report of a run.
    pub fn new(run: &Run, findings: Vec<Finding>, fast: bool) -> Self {
        let jobs = run.jobs();
        let given = run.meta.config.0.iter().filter(|(_, setting)| setting.origin != "default");
        let settings = given.filter_map(|(key, setting)| {
            setting.value.clone().map(|value| (key.to_uppercase(), value))
        });
        Self {
            run_id: run.meta.run_id.clone(),
            workers: run.meta.workers,
            settings: settings.filter(|(key, _)| key != "WORKERS").collect(),
            complete: run.is_complete(),
            shards: run.lines().count(),
            marked: run.lines().filter(|line| line.recapture).count(),
            files: jobs.len(),
            bytes: jobs.iter().map(|job| job.file().bytes).sum(),
            fast,
            findings,
            repaired: None,
        }
    }

    /// Whether there is something that a repair mends, or one that did not come to its end.
    pub fn needs_repair(&self) -> bool {
        self.marked > 0 || self.findings.iter().any(|finding| finding.kind.is_repairable())
    }

    /// One line a finding, aligned, and what was looked at.
    pub fn table(&self) -> String {
        let cells = |f: &Finding| {
            let shard = f.shard.map_or_else(|| "-".to_owned(), |shard| shard.to_string());
            [f.kind.name(), shard, f.file.clone(), f.detail.clone()]
        };
        let head = ["KIND", "SHARD", "FILE", "DETAIL"].map(str::to_owned);
        let rows: Vec<[String; 4]> =
            std::iter::once(head).chain(self.findings.iter().map(cells)).collect();
        let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let (kind, shard, file) = (width(0), width(1), width(2));
        let mut out = String::new();
        if !self.findings.is_empty() {
            for [a, b, c, d] in &rows {
                out += &format!("{a:kind$}  {b:shard$}  {c:file$}  {d}\n");
            }
            out.push('\n');
        }
        out + &self.summary()
    }

    fn summary(&self) -> String {
        let how = if self.fast { "sizes and headers" } else { "digests, headers, values" };
        let state = if self.complete { "complete" } else { "not complete" };
        let mut out = format!(
            "run `{}` ({state}): {} shards, {} files, {}: {how} and documents checked\n",
            self.run_id,
            thousands(self.shards as u64),
            thousands(self.files as u64),
            bytes(self.bytes),
        );
        match &self.repaired {
            Some(repair) => out += &self.next_steps(repair),
            None if self.marked > 0 => {
                let marked = thousands(self.marked as u64);
                out += &format!("shards that wait for the next run of 01: {marked}\n");
            }
            None => {}
        }
        out
    }

    /// What the repair did and the command that goes on from there.
    fn next_steps(&self, repair: &Repair) -> String {
        let mut out = String::new();
        if let Some(quarantine) = &repair.quarantine {
            out += &format!("{} files are in {quarantine}\n", repair.files);
        }
        let documents = thousands(repair.documents());
        out += &format!("01 will capture {documents} documents again; the command is\n\n ");
        let given = self.settings.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let workers = (self.workers > 1).then(|| ("WORKERS", self.workers.to_string()));
        for (key, value) in given.chain(workers).chain([("RUN_ID", self.run_id.clone())]) {
            out += &format!(" {key}={}", quoted(&value));
        }
        let indices: Vec<String> = repair.left.iter().map(|(i, _)| i.to_string()).collect();
        out + &match (self.workers, &indices[..]) {
            (1, _) => " 01_save_activations\n".to_owned(),
            (_, []) => " WORKER=0 01_save_activations\n".to_owned(),
            (_, [worker]) => format!(" WORKER={worker} 01_save_activations\n"),
            (_, all) => {
                format!(" sbatch --array={} slurm/submit_save_activations.sh\n", all.join(","))
            }
        }
    }

    /// Whether the run is clean, or will be.
    ///
    /// # Errors
    /// An input failure that counts the findings that are left.
    pub fn verdict(&self) -> Result<()> {
        let repaired = self.repaired.is_some();
        let left = self.findings.iter().filter(|f| !(repaired && f.kind.is_repairable()));
        let count = left.count();
        if count == 0 {
            return Ok(());
        }
        let shards: BTreeSet<ShardId> = self.findings.iter().filter_map(|f| f.shard).collect();
        let failure = Failure::input(match shards.len() {
            n if n > 0 && !repaired => {
                format!("run `{}`: {count} findings, {n} shards are damaged", self.run_id)
            }
            _ => format!("run `{}`: {count} findings", self.run_id),
        });
        Err(failure.hint(if repaired || !self.needs_repair() {
            "foreign files are left alone: move them away if they are not yours"
        } else {
            "verify_shards --repair sets damaged shards aside, and 01 captures them again"
        }))
    }

    /// One JSON object.
    ///
    /// # Errors
    /// None that can happen with these fields.
    pub fn json(&self) -> Result<String> {
        let repaired = self.repaired.as_ref().map(|r| {
            json!({"files": r.files, "quarantine": r.quarantine, "documents_left": r.documents()})
        });
        let value = json!({
            "schema": 1,
            "run_id": self.run_id,
            "complete": self.complete,
            "shards": self.shards,
            "shards_to_recapture": self.marked,
            "files": self.files,
            "bytes": self.bytes,
            "fast": self.fast,
            "findings": self.findings,
            "repaired": repaired,
        });
        Ok(serde_json::to_string_pretty(&value).map_err(std::io::Error::from)? + "\n")
    }
}

/// A value as a shell takes it.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=/:,@%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}
