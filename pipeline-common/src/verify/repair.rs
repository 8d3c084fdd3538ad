//! Sets damaged shards aside so that the next run of 01 captures their documents again.
//!
//! The run is made incomplete first, then the lines are marked, then files move: a repair that is
//! killed anywhere is finished by the next one, and readers refuse the run from the first step on.

use std::{collections::BTreeSet, path::Path};

use super::{
    finding::{Finding, ShardId},
    run::{Run, WorkerLines},
};
use crate::{
    capture::worker::{manifest_path, worker_lock},
    shard::{Committed, manifest, reader::MANIFEST},
    stage::{Result, atomic, lock::Lock},
};

/// The directory for damaged files, in the run's directory.
const QUARANTINE: &str = "quarantine";

/// Held while nobody else may write to the run.
pub struct Exclusive {
    _locks: Vec<Lock>,
}

impl Exclusive {
    /// Takes the run's lock and those of all its workers.
    ///
    /// # Errors
    /// [`crate::stage::Failure::stopped`] while a worker is at work; I/O errors.
    pub fn take(dir: &Path, workers: usize) -> Result<Self> {
        fs_err::create_dir_all(dir.join("workers"))?;
        let mut locks = vec![];
        for worker in 0..workers {
            locks.push(worker_lock(dir, worker)?);
        }
        locks.push(crate::capture::run_lock(dir)?);
        Ok(Self { _locks: locks })
    }
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repair {
    /// Files moved into quarantine.
    pub files: usize,
    /// Where they are, relative to the run.
    pub quarantine: Option<String>,
    /// The workers that have documents to capture, and how many.
    pub left: Vec<(usize, u64)>,
}

impl Repair {
    /// Documents that the next run of 01 captures.
    pub fn documents(&self) -> u64 {
        self.left.iter().map(|(_, documents)| documents).sum()
    }
}

/// Repairs the run; `findings` are what is wrong with it.
///
/// # Errors
/// I/O errors.
pub fn repair(mut run: Run, findings: &[Finding], _locks: &Exclusive) -> Result<Repair> {
    let damaged: BTreeSet<ShardId> = findings.iter().filter_map(|f| f.shard).collect();
    run.meta.totals = None;
    run.meta.hooks.iter_mut().for_each(|hook| hook.statistics = None);
    run.meta.write(&run.dir)?;
    let mut repair = Repair::default();
    let mut aside = vec![];
    for worker in &run.workers {
        let (lines, dropped) = mended(&run, worker, &damaged);
        manifest::write(&manifest_path(&run.dir, worker.worker), &lines)?;
        let marked: u64 = lines.iter().filter(|line| line.recapture).map(documents).sum();
        let end = lines.last().map_or(worker.stream.start, |line| line.end_document);
        let left = marked + worker.stream.end - end;
        if left > 0 {
            repair.left.push((worker.worker, left));
        }
        let bad = lines.iter().filter(|line| line.recapture).chain(&dropped);
        aside.extend(bad.flat_map(|line| run.paths(line)));
    }
    remove_if_there(&run.dir.join(MANIFEST))?;
    set_aside(&run.dir, &aside, &mut repair)?;
    Ok(repair)
}

fn documents(line: &Committed) -> u64 {
    line.end_document - line.first_document
}

/// A worker's lines, damaged shards marked, and those that are dropped: from the first line on that
/// does not follow its predecessor, and unfinished shards. `manifest.jsonl` has lines that a
/// worker's own file lost.
fn mended(
    run: &Run,
    worker: &WorkerLines,
    damaged: &BTreeSet<ShardId>,
) -> (Vec<Committed>, Vec<Committed>) {
    let mut kept: Vec<Committed> = vec![];
    let mut next = worker.stream.start;
    while let Some(line) = run.line(worker, kept.len(), next) {
        next = line.end_document;
        let id = ShardId { worker: worker.worker, shard: line.shard };
        let recapture = line.recapture || damaged.contains(&id);
        kept.push(Committed { recapture, ..line.clone() });
    }
    // Its documents are captured as usual.
    kept.pop_if(|last| last.recapture && last.unfinished);
    let is_kept = |line: &&Committed| kept.iter().any(|k| k.shard == line.shard);
    let own = worker.lines.iter().filter(|line| line.worker == worker.worker && !is_kept(line));
    let dropped = own.cloned().collect();
    (kept, dropped)
}

/// Moves files to `quarantine/<n>`, n being the first number that is free.
fn set_aside(dir: &Path, files: &[String], repair: &mut Repair) -> Result<()> {
    let there: Vec<&String> = files.iter().filter(|file| dir.join(file).exists()).collect();
    if there.is_empty() {
        return Ok(());
    }
    let free = (1..).map(|n: u32| format!("{QUARANTINE}/{n}")).find(|q| !dir.join(q).exists());
    let quarantine = free.unwrap_or_else(|| QUARANTINE.to_owned());
    for file in there {
        atomic::rename(&dir.join(file), &dir.join(&quarantine).join(file))?;
        repair.files += 1;
    }
    repair.quarantine = Some(quarantine);
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs_err::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
