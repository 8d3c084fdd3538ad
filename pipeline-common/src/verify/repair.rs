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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{capture::CaptureMeta, shard::manifest::tests::line};

    const SHARDS: usize = 6;

    /// A run of one worker with these of its shards' lines, two documents each.
    fn run(lines: &[usize], manifest: &[usize]) -> Run {
        let meta: CaptureMeta = serde_json::from_value(json!({
            "schema": 1, "run_id": "r", "workers": 1, "activation_scale": 1.0, "config": {},
            "model": {"id": "m", "revision": "local", "architecture": "A", "tokenizer": "0"},
            "hooks": [], "dataset": {"source": "d", "documents": 12, "fingerprint": "0"},
        }))
        .unwrap();
        let shard = |n: &usize| Committed {
            first_document: *n as u64 * 2,
            end_document: *n as u64 * 2 + 2,
            ..line(0, *n)
        };
        let lines = lines.iter().map(shard).collect();
        let workers = vec![WorkerLines { worker: 0, stream: 0..SHARDS as u64 * 2, lines }];
        Run::of(meta, workers, Some(manifest.iter().map(shard).collect()))
    }

    proptest! {
        #[test]
        fn whatever_happened_to_the_lines_those_that_are_kept_follow_each_other(
            lines in proptest::collection::vec(0..SHARDS, 0..10),
            manifest in proptest::collection::vec(0..SHARDS, 0..10),
            damaged in proptest::collection::btree_set(0..SHARDS, 0..3),
        ) {
            let damaged = damaged.into_iter().map(|shard| ShardId { worker: 0, shard }).collect();
            let run = run(&lines, &manifest);
            let (kept, dropped) = mended(&run, &run.workers[0], &damaged);
            let has = |shard: usize| lines.contains(&shard) || manifest.contains(&shard);
            let whole = (0..SHARDS).take_while(|shard| has(*shard)).count();
            prop_assert!(kept.iter().map(|line| line.shard).eq(0..whole));
            for line in &kept {
                let marked = damaged.contains(&ShardId { worker: 0, shard: line.shard });
                prop_assert_eq!(line.recapture, marked);
            }
            prop_assert!(dropped.iter().all(|line| line.shard > whole && lines.contains(&line.shard)));
        }
    }
}
