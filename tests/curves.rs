//! What a training writes for people to look at, through interruptions and divergence.

use std::{path::Path, process::Stdio, time::Duration};

use pipeline_common::sae::history::Record;
use rustix::process::{Pid, Signal, kill_process};

use super::workload::{Contents, SAVE, TRAIN, Workload};

/// The steps of the events in a file of TFRecords.
fn event_steps(file: &Path) -> Vec<u64> {
    let bytes = fs_err::read(file).unwrap();
    let (mut rest, mut steps) = (&bytes[..], vec![]);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = &rest[12..12 + length];
        rest = &rest[16 + length..];
        // Wall time, then field 2 where the event has a step.
        if event[9] == 0x10 {
            let (mut step, mut place) = (0, 10);
            loop {
                step |= u64::from(event[place] & 0x7f) << (7 * (place - 10));
                place += 1;
                if event[place - 1] < 0x80 {
                    break;
                }
            }
            steps.push(step);
        }
    }
    steps
}

/// The one event file of a run.
fn events(run: &Path) -> Vec<u64> {
    let files: Vec<_> = fs_err::read_dir(run.join("tensorboard")).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let file = files[0].as_ref().unwrap();
    assert!(file.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    event_steps(&file.path())
}

fn lines(file: &Path) -> Vec<String> {
    let text = fs_err::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Kills a training once its curve has `records` records, or waits for its end.
fn kill_after(work: &Workload, variables: &[(&str, &str)], records: usize) {
    let mut child =
        work.stage(TRAIN).envs(variables.iter().copied()).stderr(Stdio::null()).spawn().unwrap();
    let curve = work.run("training").join("history.jsonl");
    while child.try_wait().unwrap().is_none() && lines(&curve).len() < records {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It may have ended since.
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap_or_default();
    child.wait().unwrap();
}

#[test]
fn killed_trainings_end_with_the_same_curves_and_no_step_twice() {
    let work = Workload::new(200);
    let variables =
        [("LOG_EVERY", "1"), ("VALIDATE_EVERY", "16"), ("CHECKPOINT_EVERY", "7"), ("EPOCHS", "3")];
    work.succeed(SAVE, &[]);
    work.succeed(TRAIN, &variables);
    let (run, expected) = (work.run("training"), Contents::read(&work.store()));
    let history: Vec<Record> =
        serde_json::from_slice(&fs_err::read(run.join("history.json")).unwrap()).unwrap();
    let steps: Vec<u64> = (1..=history.len() as u64).collect();
    assert!(steps.len() > 60, "{}", steps.len());
    assert!(history.iter().skip(1).all(|r| r.gradient_norm > 0.0 && r.sparsity_factor > 0.0));
    let validated = history.iter().filter(|r| r.validation.is_some()).map(|r| r.step);
    let every = steps.iter().copied().filter(|step| step % 16 == 0 || *step == steps.len() as u64);
    assert!(validated.eq(every));
    assert_eq!(events(&run), steps);

    fs_err::remove_dir_all(&run).unwrap();
    for records in [3, 20, 45, steps.len()] {
        kill_after(&work, &variables, records);
    }
    work.succeed(TRAIN, &variables);
    Contents::read(&work.store()).assert_same(&expected, "kill -9");
    assert_eq!(events(&run), steps);
    assert_eq!(lines(&run.join("timing.jsonl")).len(), steps.len());
    let page = fs_err::read_to_string(run.join("training.html")).unwrap();
    assert!(page.contains("Unexplained variance") && page.contains("TOP_K"));
}

#[test]
fn a_training_that_diverges_names_its_last_good_checkpoint() {
    let work = Workload::new(60);
    work.succeed(SAVE, &[]);
    let run = work.run("training");
    let diverge = |variables: &[(&str, &str)]| {
        let variables = [&[("WARMUP", "0"), ("EPOCHS", "5")], variables].concat();
        let output = work.stage(TRAIN).envs(variables).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = diverge(&[("LR", "1e39"), ("CHECKPOINT_EVERY", "1")]);
    assert!(said.contains("there is no checkpoint yet"), "{said}");
    assert!(said.contains("training diverged at step 1: an element of `param."), "{said}");
    assert!(!run.join("checkpoints").exists());
    fs_err::remove_dir_all(&run).unwrap();

    let variables = [("LR", "1e30"), ("CHECKPOINT_EVERY", "1"), ("LOG_EVERY", "1")];
    let said = diverge(&variables);
    assert!(said.contains("training diverged at step 1: the loss is "), "{said}");
    let checkpoint = run.join("checkpoints/step-000000000001.safetensors");
    let named = format!("the last good checkpoint is `{}`, step 1", checkpoint.display());
    assert!(said.contains(&named) && checkpoint.exists(), "{said}");
    assert!(said.contains("hint: lower LR"), "{said}");
    assert!(fs_err::read_to_string(run.join("training.html")).unwrap().contains("1 of "));
    let before = Contents::read(&work.store());
    assert!(diverge(&variables).contains(&named));
    Contents::read(&work.store()).assert_same(&before, "diverged again");
}
