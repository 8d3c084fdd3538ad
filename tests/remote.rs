//! Shards that go to a second place while they are captured, and come back from there.
//!
//! Here that place is a directory, which speaks the whole protocol without a server; `s3` repeats
//! what matters against an S3 server behind a connection that fails.

mod faults;
mod s3;
mod server;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::workload::{Contents, EVALUATE, PREPARE, Random, SAVE, TOP, TRAIN, VERIFY, Workload};

/// What is no object: locks, and the hidden files of puts into a directory that were killed.
const LOCAL: &[&str] = &[".lock", "#1", "#2"];

fn remote_text(work: &Workload) -> String {
    work.path("bucket").to_str().unwrap().to_owned()
}

fn exit(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a store holds after each stage has run undisturbed, without a remote one.
fn undisturbed(work: &Workload, stages: &[&str]) -> Contents {
    for stage in stages {
        work.succeed(stage, &[]);
    }
    work.take().without(LOCAL)
}

/// Whether a file of a store is a shard's activations.
fn is_activations(name: &Path) -> bool {
    let name = name.to_string_lossy();
    name.contains("/shard-") && !name.contains("/tokens/")
}

/// Interrupts a capture again and again, and wipes all that is local each time; how often. `span`
/// is what it takes undisturbed.
fn torment(
    work: &Workload,
    (variables, span): (&[(&str, &str)], Duration),
    signal: Signal,
    wipe: &Path,
) -> usize {
    let mut random = Random(11);
    for hits in 0..40 {
        let mut command = work.stage(SAVE);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(span.mul_f64(0.2 + 0.25 * random.fraction()));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return hits;
        }
        let (code, said) = exit(&output);
        assert!([-1, 75].contains(&code), "{code}: {said}");
        if wipe.exists() {
            fs_err::remove_dir_all(wipe).unwrap();
        }
    }
    work.succeed(SAVE, variables);
    40
}

fn a_wiped_capture_goes_on_from_the_remote_store(signal: Signal) {
    let work = Workload::new(2500);
    let begin = Instant::now();
    let expected = undisturbed(&work, &[SAVE]);
    let span = begin.elapsed();
    let remote = remote_text(&work);
    let variables = [("UPLOAD_TO", remote.as_str())];
    let hits = torment(&work, (&variables, span), signal, &work.store());
    assert!(hits > 1, "the capture was over too soon");
    Contents::read(Path::new(&remote)).without(LOCAL).assert_same(&expected, "in the remote store");
}

#[test]
fn a_killed_capture_goes_on_from_the_remote_store_alone() {
    a_wiped_capture_goes_on_from_the_remote_store(Signal::KILL);
}

#[test]
fn a_stopped_capture_goes_on_from_the_remote_store_alone() {
    a_wiped_capture_goes_on_from_the_remote_store(Signal::USR1);
}

#[test]
fn shards_that_are_only_remote_are_staged_for_training_and_reading() {
    let work = Workload::new(300);
    let expected = undisturbed(&work, &[SAVE, TRAIN, TOP]);
    let (remote, scratch) = (remote_text(&work), work.path("scratch"));
    let variables = [
        ("UPLOAD_TO", remote.as_str()),
        ("UPLOAD_KEEP", "0"),
        ("SLURM_TMPDIR", scratch.to_str().unwrap()),
    ];
    work.succeed(SAVE, &variables);
    let local = Contents::read(&work.store());
    assert!(local.names().all(|name| !is_activations(name)), "local activations were to go");
    let refused = work.stage(TRAIN).envs([("STAGING", "never")]).output().unwrap();
    assert_eq!(exit(&refused).0, 65, "{}", exit(&refused).1);
    let readers = [variables[0], variables[2]];
    work.succeed(TRAIN, &readers);
    work.succeed(TOP, &readers);
    assert!(scratch.exists(), "nothing was staged");
    Contents::read(Path::new(&remote)).without(LOCAL).assert_same(&expected, "in the remote store");
}

#[test]
fn prepared_streams_are_found_by_workers_on_other_nodes() {
    let work = Workload::new(60);
    // Settings are found in other places there, so `meta.json` differs in their origins.
    let data = |mut contents: Contents| {
        contents.0.retain(|name, _| {
            let name = name.to_string_lossy();
            name.contains("/shard-") || name.contains("/stream-")
        });
        contents
    };
    let expected = data(undisturbed(&work, &[PREPARE, SAVE]));
    assert!(expected.names().count() > 2);
    let remote = remote_text(&work);
    let variables = [("UPLOAD_TO", remote.as_str())];
    work.succeed(PREPARE, &variables);
    fs_err::remove_dir_all(work.store()).unwrap();
    // This node has neither the streams nor the text.
    fs_err::remove_file(work.path("text.jsonl")).unwrap();
    work.succeed(SAVE, &variables);
    data(Contents::read(Path::new(&remote))).assert_same(&expected, "in the remote store");
}

#[test]
fn files_that_are_only_remote_count_as_there_and_damaged_ones_do_not() {
    let work = Workload::new(60);
    let remote = remote_text(&work);
    let variables = [("UPLOAD_TO", remote.as_str()), ("UPLOAD_KEEP", "0")];
    work.succeed(SAVE, &variables);
    assert_eq!(work.stage(VERIFY).output().unwrap().status.code(), Some(65));
    work.succeed(VERIFY, &variables[..1]);
    let shards = Contents::read(Path::new(&remote));
    let shard = shards.names().find(|name| is_activations(name)).unwrap();
    let shard = Path::new(&remote).join(shard);
    let mut bytes = fs_err::read(&shard).unwrap();
    bytes[5000] ^= 1;
    fs_err::write(&shard, bytes).unwrap();
    let found = work.stage(VERIFY).envs([variables[0]]).output().unwrap();
    assert_eq!(found.status.code(), Some(65));
}

#[test]
fn staging_always_reads_a_copy_and_computes_the_same() {
    let work = Workload::new(200);
    let expected = undisturbed(&work, &[SAVE, TRAIN]);
    let scratch = work.path("scratch");
    let variables = [("STAGING", "always"), ("SLURM_TMPDIR", scratch.to_str().unwrap())];
    work.succeed(SAVE, &[]);
    work.succeed(TRAIN, &variables);
    let staged = Contents::read(&scratch);
    assert!(staged.names().any(|name| name.ends_with("manifest.jsonl")));
    work.take().without(LOCAL).assert_same(&expected, "with staged shards");
}

#[test]
fn a_damaged_object_is_named() {
    let work = Workload::new(50);
    let (remote, scratch) = (remote_text(&work), work.path("scratch"));
    let variables = [
        ("UPLOAD_TO", remote.as_str()),
        ("UPLOAD_KEEP", "0"),
        ("SLURM_TMPDIR", scratch.to_str().unwrap()),
    ];
    work.succeed(SAVE, &variables);
    let there = Contents::read(Path::new(&remote));
    let path = Path::new(&remote).join(there.names().find(|name| is_activations(name)).unwrap());
    let mut bytes = fs_err::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let output = work.stage(TRAIN).envs([variables[0], variables[2]]).output().unwrap();
    let (code, said) = exit(&output);
    assert_eq!(code, 65, "{said}");
    assert!(said.contains(path.to_str().unwrap()) && said.contains("blake3"), "{said}");
}

#[test]
fn of_two_processes_on_one_stream_one_goes_on() {
    let work = Workload::new(1500);
    let expected = undisturbed(&work, &[SAVE]);
    let remote = remote_text(&work);
    let start = |store: &str| -> Command {
        let mut command = work.stage(SAVE);
        command.env("UPLOAD_TO", remote.as_str()).env("STORE_DIR", work.path(store));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let both = ["node-a", "node-b"].map(|store| start(store).spawn().unwrap());
    let ended = both.map(|child| exit(&child.wait_with_output().unwrap()));
    let mut codes = [ended[0].0, ended[1].0];
    codes.sort_unstable();
    assert_eq!(codes, [0, 75], "{ended:?}");
    let loser = if ended[0].0 == 75 { 0 } else { 1 };
    assert!(ended[loser].1.contains("another process works on stream 0"), "{ended:?}");
    let again = start(["node-a", "node-b"][loser]).output().unwrap();
    assert_eq!(exit(&again).0, 0, "{again:?}");
    Contents::read(Path::new(&remote)).without(LOCAL).assert_same(&expected, "in the remote store");
}

#[test]
fn workers_on_nodes_of_their_own_complete_the_run_together() {
    let work = Workload::new(400);
    let array = |index: &'static str| [("WORKERS", "3"), ("WORKER", index)];
    for index in ["0", "1", "2"] {
        work.succeed(SAVE, &array(index));
    }
    let expected = work.take().without(LOCAL);
    let remote = remote_text(&work);
    let workers = ["0", "1", "2"].map(|index| {
        let mut command = work.stage(SAVE);
        command.envs(array(index)).env("UPLOAD_TO", remote.as_str());
        command.env("STORE_DIR", work.path(&format!("node-{index}")));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let said: String = workers.map(|child| exit(&child.wait_with_output().unwrap()).1).concat();
    Contents::read(Path::new(&remote)).without(LOCAL).assert_same(&expected, "in the remote store");
    assert_eq!(said.matches("all is in").count(), 1, "one worker completes the run: {said}");
}

#[test]
fn what_was_captured_without_a_remote_store_is_uploaded_later() {
    let work = Workload::new(100);
    work.succeed(SAVE, &[]);
    let remote = remote_text(&work);
    work.succeed(SAVE, &[("UPLOAD_TO", remote.as_str())]);
    let local = Contents::read(&work.store()).without(LOCAL);
    Contents::read(Path::new(&remote)).without(LOCAL).assert_same(&local, "in the remote store");
}

#[test]
fn another_run_under_the_same_name_is_refused() {
    let work = Workload::new(60);
    let remote = remote_text(&work);
    work.succeed(SAVE, &[("UPLOAD_TO", remote.as_str())]);
    let before = Contents::read(Path::new(&remote));
    let other = work.path("other");
    let mut command = work.stage(SAVE);
    command.envs([("UPLOAD_TO", remote.as_str()), ("MAX_LENGTH", "32")]).env("STORE_DIR", other);
    let (code, said) = exit(&command.output().unwrap());
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("MAX_LENGTH"), "{said}");
    Contents::read(Path::new(&remote)).assert_same(&before, "after the refusal");
}

#[test]
fn a_check_tries_the_place_and_leaves_nothing() {
    let work = Workload::new(20);
    let remote = remote_text(&work);
    let (out, _) = work.succeed(SAVE, &[("UPLOAD_TO", remote.as_str()), ("CHECK", "1")]);
    assert!(out.contains(&format!("upload     {remote}, writable")), "{out}");
    assert_eq!(fs_err::read_dir(&remote).unwrap().count(), 0);
}

#[test]
fn places_that_are_none_say_what_to_write() {
    let work = Workload::new(5);
    for (variables, code, part) in [
        (vec![("UPLOAD_TO", "ftp://host/x")], 2, "s3://"),
        (vec![("UPLOAD_TO", "s3://")], 2, "bucket is missing"),
        (vec![("STORE_DIR", "s3://a/b"), ("UPLOAD_TO", "s3://c")], 2, "STORE_DIR is"),
        (vec![("UPLOAD_TO", "text.jsonl/below")], 69, "text.jsonl"),
    ] {
        let (found, said) = exit(&work.stage(SAVE).envs(variables.clone()).output().unwrap());
        assert_eq!(found, code, "{variables:?}: {said}");
        assert!(said.contains(part) && said.contains("hint:"), "{variables:?}: {said}");
    }
}
