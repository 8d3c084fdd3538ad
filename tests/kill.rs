//! Stages that are killed or asked to stop at any moment, and run again, end with the same bytes.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::workload::{Contents, Random, SAVE, TRAIN, Workload};

/// How often a stage may be interrupted before it is left alone.
const INTERRUPTIONS: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Interruption {
    Kill,
    Ask,
}

/// A stage with settings of its own.
#[derive(Clone, Copy)]
struct Stage<'a> {
    work: &'a Workload,
    binary: &'a str,
    settings: &'a [(&'a str, &'a str)],
}

impl<'a> Stage<'a> {
    fn new(work: &'a Workload, binary: &'a str) -> Self {
        Self { work, binary, settings: &[] }
    }

    fn start(&self) -> Child {
        let mut command = self.work.stage(self.binary);
        command.envs(self.settings.iter().copied());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// Runs a stage to its end, which must be success; how long it took.
fn finish(stage: Stage<'_>) -> Duration {
    let begin = Instant::now();
    let output = stage.start().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", stage.binary);
    begin.elapsed()
}

/// Interrupts a stage at random moments of `span`, the time it takes undisturbed, until it is done
/// or has been interrupted often; then lets it finish. How often it was hit.
fn torment(stage: Stage<'_>, span: Duration, how: Interruption, seed: u64) -> usize {
    let mut random = Random(seed);
    for hits in 0..INTERRUPTIONS {
        let child = stage.start();
        // stderr is read at the end only: a log line every 30 s fits into the pipe.
        std::thread::sleep(span.mul_f64(random.fraction()));
        let signal = if how == Interruption::Kill { Signal::KILL } else { Signal::USR1 };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return hits;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(was_interrupted(status, how), "{}: {status:?} {said}", stage.binary);
    }
    finish(stage);
    INTERRUPTIONS
}

fn was_interrupted(status: ExitStatus, how: Interruption) -> bool {
    match how {
        Interruption::Kill => status.signal() == Some(Signal::KILL.as_raw()),
        // A signal in the first milliseconds comes before the handlers.
        Interruption::Ask => {
            status.code() == Some(75) || status.signal() == Some(Signal::USR1.as_raw())
        }
    }
}

fn interrupted_stages_end_with_the_same_bytes(how: Interruption) {
    let work = Workload::new(3000);
    let (save, train) = (Stage::new(&work, SAVE), Stage::new(&work, TRAIN));
    let (save_time, train_time) = (finish(save), finish(train));
    let undisturbed = work.take();
    for suffix in ["manifest.jsonl", "sae_weights.safetensors", "run_id.txt", "sae_run_id.txt"] {
        assert!(undisturbed.names().any(|name| name.ends_with(suffix)), "no {suffix} was written");
    }
    let (mut hits, mut seed) = (0, 0);
    // Where the machine was busy while the time was taken, many interruptions come too late.
    while seed < 2 || hits < 6 {
        seed += 1;
        assert!(seed <= 10, "only {hits} interruptions came before the end");
        hits += torment(save, save_time, how, seed);
        hits += torment(train, train_time, how, seed + 100);
        Contents::read(&work.store()).assert_same(&undisturbed, &format!("seed {seed}"));
        fs_err::remove_dir_all(work.store()).unwrap();
    }
}

#[test]
fn killed_stages_end_with_the_same_bytes() {
    interrupted_stages_end_with_the_same_bytes(Interruption::Kill);
}

#[test]
fn stages_that_were_asked_to_stop_end_with_the_same_bytes() {
    interrupted_stages_end_with_the_same_bytes(Interruption::Ask);
}

#[test]
fn a_finished_stage_that_runs_again_changes_nothing() {
    let work = Workload::new(100);
    for stage in [SAVE, TRAIN].map(|binary| Stage::new(&work, binary)) {
        finish(stage);
        let before = Contents::read(&work.store());
        finish(stage);
        Contents::read(&work.store()).assert_same(&before, stage.binary);
    }
}

/// With everything that a step carries on to the next, and with checkpoints so often that many kills
/// fall into one.
#[test]
fn a_training_that_is_killed_fifty_times_ends_with_the_same_bytes() {
    const KILLS: usize = 50;
    let settings = [
        ("SAE_ARCH", "batchtopk"),
        ("K_ANNEAL", "40"),
        ("WEIGHT_EMA", "0.9"),
        ("ACCUMULATE", "2"),
        ("BATCH_SIZE_TRAIN", "64"),
        ("VALIDATE_EVERY", "10"),
        ("VALIDATION", "0.1"),
        ("DEAD_AFTER", "1500"),
        ("RESAMPLE_EVERY", "15"),
        ("CHECKPOINT_EVERY", "2"),
    ];
    let work = Workload::new(150);
    finish(Stage::new(&work, SAVE));
    let train = Stage { settings: &settings, ..Stage::new(&work, TRAIN) };
    let span = finish(train);
    let undisturbed = Contents::read(&work.store());
    let (mut hits, mut seed) = (0, 200);
    while hits < KILLS {
        seed += 1;
        assert!(seed < 260, "only {hits} kills came before the end");
        fs_err::remove_dir_all(work.run("training")).unwrap();
        hits += torment(train, span, Interruption::Kill, seed);
        Contents::read(&work.store()).assert_same(&undisturbed, &format!("seed {seed}"));
    }
}
