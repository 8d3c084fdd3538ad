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

fn start(work: &Workload, stage: &str) -> Child {
    work.stage(stage).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a stage to its end, which must be success; how long it took.
fn finish(work: &Workload, stage: &str) -> Duration {
    let begin = Instant::now();
    let output = start(work, stage).wait_with_output().unwrap();
    assert!(output.status.success(), "{stage}: {}", String::from_utf8_lossy(&output.stderr));
    begin.elapsed()
}

/// Interrupts a stage at random moments of `span`, the time it takes undisturbed, until it is done
/// or has been interrupted often; then lets it finish. How often it was hit.
fn torment(work: &Workload, stage: &str, span: Duration, how: Interruption, seed: u64) -> usize {
    let mut random = Random(seed);
    for hits in 0..INTERRUPTIONS {
        let child = start(work, stage);
        // stderr is read at the end only: a log line every 30 s fits into the pipe.
        std::thread::sleep(span.mul_f64(random.fraction()));
        let signal = if how == Interruption::Kill { Signal::KILL } else { Signal::USR1 };
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return hits;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(was_interrupted(output.status, how), "{stage}: {:?} {said}", output.status);
    }
    finish(work, stage);
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
    let save_time = finish(&work, SAVE);
    let train_time = finish(&work, TRAIN);
    let undisturbed = work.take();
    for suffix in ["manifest.jsonl", "sae_weights.safetensors", "run_id.txt", "sae_run_id.txt"] {
        assert!(undisturbed.names().any(|name| name.ends_with(suffix)), "no {suffix} was written");
    }
    let (mut hits, mut seed) = (0, 0);
    // Where the machine was busy while the time was taken, many interruptions come too late.
    while seed < 2 || hits < 6 {
        seed += 1;
        assert!(seed <= 10, "only {hits} interruptions came before the end");
        hits += torment(&work, SAVE, save_time, how, seed);
        hits += torment(&work, TRAIN, train_time, how, seed + 100);
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
    for stage in [SAVE, TRAIN] {
        finish(&work, stage);
        let before = Contents::read(&work.store());
        finish(&work, stage);
        Contents::read(&work.store()).assert_same(&before, stage);
    }
}
