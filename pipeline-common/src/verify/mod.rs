//! verify_shards: a capture run checked against its records, and repaired.
//!
//! `run` reads the records and compares them with each other, `files` compares each file with its
//! manifest line, `repair` sets damaged shards aside, `report` is what people and programs read.

mod files;
mod finding;
mod repair;
mod report;
mod run;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use clap::{Args, Parser, builder::BoolishValueParser};
use rayon::prelude::*;

use crate::{
    remote::{Client, RemoteRun, args::RemoteArgs},
    stage::{
        CommonArgs, Context, Result, Stage,
        progress::{bytes, thousands},
        store::{Pointer, Store},
    },
};
pub use finding::{Damage, Finding, ShardId};
use repair::Exclusive;
use report::Report;
use run::Run;

const EXAMPLES: &str = "\
Examples:
  verify_shards                        check the newest complete capture
  RUN_ID=my-capture verify_shards      check a certain one, complete or not
  verify_shards --fast                 sizes and headers alone, in a moment
  verify_shards --repair               set damaged shards aside; 01 captures them again
  verify_shards --json | jq '.findings[]'";

/// Checks a capture run: files, digests, headers, rows, values, documents, manifests.
///
/// Prints what is wrong and exits with 65 if there is anything. With --repair, damaged shards are
/// moved to quarantine/ in the run's directory and their documents marked for recapture, which the
/// next run of 01_save_activations does.
#[derive(Parser, Debug)]
#[command(name = "verify_shards", version, after_help = EXAMPLES)]
pub struct VerifyShards {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    verify: VerifyArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Verification")]
struct VerifyArgs {
    /// Leave the payload unread: no digests, values or statistics
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    fast: bool,
    /// Set damaged shards aside and mark their documents for recapture
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    repair: bool,
    /// Print one JSON object instead of a table
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    json: bool,
}

impl Stage for VerifyShards {
    const SECTION: &'static str = "verify_shards";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let (_, dir) = self.find()?;
        let run = Run::open(&dir)?;
        let locks = match self.verify.repair {
            true => Some(Exclusive::take(&dir, run.workers.len())?),
            false => None,
        };
        // Read again under the locks.
        let run = if locks.is_some() { Run::open(&dir)? } else { run };
        let findings = self.findings(context, &run)?;
        let mut report = Report::new(&run, findings, self.verify.fast);
        if let Some(locks) = locks
            && report.needs_repair()
        {
            report.repaired = Some(repair::repair(run, &report.findings, &locks)?);
        }
        context.print(&if self.verify.json { report.json()? } else { report.table() });
        report.verdict()
    }

    fn check(&self, context: &Context) -> Result<()> {
        let (run_id, dir) = self.find()?;
        let run = Run::open(&dir)?;
        let jobs = run.jobs();
        let size: u64 = jobs.iter().map(|job| job.file().bytes).sum();
        context.print(&format!(
            "run    {run_id}\nshards {}\nfiles  {}\nread   {}\n",
            thousands(run.lines().count() as u64),
            thousands(jobs.len() as u64),
            if self.verify.fast { "headers alone".to_owned() } else { bytes(size) },
        ));
        Ok(())
    }
}

impl VerifyShards {
    fn find(&self) -> Result<(String, PathBuf)> {
        Store::new(self.common.store_root()).find(self.common.run_id.as_deref(), Pointer::Capture)
    }

    /// Everything that is wrong with the run, in a fixed order.
    fn findings(&self, context: &Context, run: &Run) -> Result<Vec<Finding>> {
        let jobs = run.jobs();
        let progress = context.progress("verifying", jobs.len() as u64, "files").of_bytes();
        let progress = Mutex::new(progress);
        let check = |job: &files::Job<'_>| {
            if context.stop.requested() {
                return vec![];
            }
            let found = job.check(run, self.verify.fast);
            let read = if self.verify.fast { 0 } else { job.file().bytes };
            progress.lock().unwrap_or_else(PoisonError::into_inner).advance(1, read, "");
            found
        };
        let mut findings: Vec<Finding> = jobs.par_iter().flat_map_iter(check).collect();
        context.leave_if_asked("nothing was changed")?;
        findings.extend(run.check()?);
        findings.sort();
        findings.dedup();
        match self.remote.connect(&self.common)? {
            None => Ok(findings),
            Some(client) => uploaded(&client, run, findings),
        }
    }
}

/// Leaves out the missing files that a remote store holds as the manifest has them.
fn uploaded(client: &Client, run: &Run, findings: Vec<Finding>) -> Result<Vec<Finding>> {
    let remote = RemoteRun::new(client.clone(), &run.meta.run_id);
    let jobs = run.jobs();
    let mut left = vec![];
    for finding in findings {
        let file = jobs.iter().map(files::Job::file).find(|file| file.path == finding.file);
        let there = match file.filter(|_| finding.kind == Damage::Missing) {
            Some(file) => client.holds(&remote.key(&file.path), file)?,
            None => false,
        };
        if !there {
            left.push(finding);
        }
    }
    Ok(left)
}
