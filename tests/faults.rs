//! Many workers under many faults: every document's rows are there exactly once, in order.
//!
//! Byte equality with an undisturbed run says all of it: shards, token files, manifests and
//! `meta.json` hold no time, no host and no trace of restarts.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::workload::{Contents, Random, SAVE, Workload};

const WORKERS: usize = 3;

/// What the issue of pre-emption asks for.
const KILLS: usize = 200;

fn start(work: &Workload, worker: usize, workers: usize) -> Child {
    let mut command = work.stage(SAVE);
    command.env("WORKER", worker.to_string()).env("WORKERS", workers.to_string());
    // stderr is read at the end only: what a stage says fits into the pipe.
    command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Runs all workers to their ends at once.
fn finish(work: &Workload, workers: usize) -> Vec<String> {
    let children: Vec<Child> = (0..workers).map(|i| start(work, i, workers)).collect();
    let said = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{:?}: {said}", output.status);
        said
    };
    children.into_iter().map(said).collect()
}

/// A process that was started on a stream, and what was done to it.
struct Running {
    child: Child,
    signal: Option<Signal>,
}

impl Running {
    /// Whether it has ended; how it ended must be explained by what was done to it, or by another
    /// process on the same stream.
    fn is_over(&mut self) -> bool {
        let Some(status) = self.child.try_wait().unwrap() else { return false };
        let explained = match (status.code(), self.signal) {
            (Some(0 | 75), _) => true,
            (None, Some(signal)) => status.signal() == Some(signal.as_raw()),
            _ => false,
        };
        assert!(explained, "{status:?} after {:?}", self.signal);
        true
    }

    fn send(&mut self, signal: Signal) {
        // A process that was killed may take a moment to end, and then another signal reaches it.
        if self.signal != Some(Signal::KILL) {
            self.signal = Some(signal);
        }
        // It may have ended a moment ago; its process id is ours until it is waited for.
        let _ended = kill_process(Pid::from_child(&self.child), signal);
    }
}

/// Starts, duplicates, signals and kills workers at random until `kills` were killed.
fn rage(work: &Workload, seed: u64, kills: &mut usize, span: Duration) {
    let mut random = Random(seed);
    let mut running: Vec<Running> = vec![];
    let began = Instant::now();
    while *kills < KILLS && began.elapsed() < 20 * span {
        running.retain_mut(|process| !process.is_over());
        let worker = random.below(WORKERS);
        // More processes than streams, so that some are duplicates.
        if running.len() < WORKERS + 1 {
            running.push(Running { child: start(work, worker, WORKERS), signal: None });
        }
        std::thread::sleep(span.mul_f64(random.fraction() / 4.0));
        let victim = random.below(running.len());
        let process = &mut running[victim];
        if process.is_over() {
            running.swap_remove(victim);
            continue;
        }
        let signal = match random.below(8) {
            0 => Signal::TERM,
            1 => Signal::USR1,
            _ => Signal::KILL,
        };
        process.send(signal);
        *kills += usize::from(signal == Signal::KILL);
    }
    for mut process in running {
        process.send(Signal::KILL);
        process.child.wait().unwrap();
    }
}

#[test]
fn two_hundred_kills_and_duplicates_leave_every_row_exactly_once() {
    let work = Workload::new(1500);
    let timed = || {
        let began = Instant::now();
        finish(&work, WORKERS);
        (began.elapsed(), work.take())
    };
    // Kills are spread over this time: one run that the machine held up would stretch all of them.
    let ((first, undisturbed), (second, again)) = (timed(), timed());
    again.assert_same(&undisturbed, "undisturbed");
    let span = first.min(second);
    let (mut kills, mut seed) = (0, 0);
    while kills < KILLS {
        seed += 1;
        rage(&work, seed, &mut kills, span);
        finish(&work, WORKERS);
        work.take().assert_same(&undisturbed, &format!("seed {seed}, {kills} kills"));
    }
}

#[test]
fn workers_that_end_at_once_complete_the_run_once() {
    let work = Workload::new(64);
    for round in 0..8 {
        let said = finish(&work, 4);
        let completed = said.iter().filter(|s| s.contains("run `capture` is complete:")).count();
        assert_eq!(completed, 1, "round {round}: {said:#?}");
        assert_eq!(fs_err::read_to_string(work.store().join("run_id.txt")).unwrap(), "capture\n");
        work.take();
    }
}

#[test]
fn a_duplicate_says_so_and_leaves_the_first_alone() {
    let work = Workload::new(3000);
    let mut first = start(&work, 0, 1);
    let lock = work.run("capture").join("workers/0.lock");
    let begin = Instant::now();
    while !lock.exists() && begin.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = start(&work, 0, 1).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(first.try_wait().unwrap().is_none(), "the first was done too early to tell");
    assert_eq!(second.status.code(), Some(75), "{said}");
    assert!(said.contains("another process works on stream 0"), "{said}");
    assert!(first.wait().unwrap().success());
}

/// The rows of a run by document: tokens and activations, in order.
fn rows(work: &Workload) -> Vec<(u64, Vec<u32>, Vec<u8>)> {
    use pipeline_common::shard::{ShardSet, manifest};
    let run = work.run("capture");
    let hook = manifest::read(&run.join("manifest.jsonl")).unwrap()[0].hooks[0].hook.clone();
    let set = ShardSet::open(&run, &hook).unwrap();
    let mut found = vec![];
    for shard in 0..set.shards() {
        let (tokens, values) = (set.tokens(shard).unwrap(), set.shard_rows(shard));
        for sentence in 0..tokens.sentences() {
            let range = tokens.sentence_rows(sentence);
            let ids = range.clone().map(|row| tokens.token(row).id).collect();
            let values = &values[range.start * set.d_in()..range.end * set.d_in()];
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            found.push((tokens.document(sentence), ids, bytes));
        }
    }
    found
}

#[test]
fn the_number_of_workers_changes_nothing_in_the_rows() {
    let work = Workload::new(500);
    let mut expected = None;
    for workers in [1, 2, 4] {
        finish(&work, workers);
        let found = rows(&work);
        work.take();
        assert_eq!(found.len(), 500);
        // Batches differ between the runs; rows do not depend on their batch, to the last bit.
        assert!(*expected.get_or_insert_with(|| found.clone()) == found, "{workers} workers");
    }
}

#[test]
fn another_number_of_workers_is_refused() {
    let work = Workload::new(50);
    finish(&work, 2);
    let before = Contents::read(&work.store());
    let output = start(&work, 0, 3).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("WORKERS: run has `2`, now `3`"), "{said}");
    Contents::read(&work.store()).assert_same(&before, "refused");
}
