//! Captures, trainings and reports whose store is an S3 server behind a connection that fails.

use std::{path::PathBuf, time::Instant};

use rustix::process::Signal;

use super::{
    EVALUATE, LOCAL, SAVE, TOP, TRAIN, Workload, exit,
    faults::{Fault, Faulty},
    server::{BUCKET, S3},
    torment, undisturbed,
};

const SECRET: &str = "wJalrXUtnFEMIexampleKEY";
const KEY: &str = "AKIAEXAMPLEKEY123456";

/// The variables of a client that reaches the server at `address`.
fn credentials(address: &str) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_TIMEOUT", "4 seconds"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn with<'a>(
    credentials: &'a [(String, String)],
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let all = credentials.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.chain(more.iter().copied()).collect()
}

fn bucket(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// Every kind of failure, early, and an error now and then.
fn everything(method: &str, path: &str, before: usize) -> Option<Fault> {
    match (method, before) {
        // The very first put is a conditional one: its repetition must know its own work.
        ("PUT", 0) => Some(Fault::LoseAnswer),
        ("PUT", 3) => Some(Fault::Error),
        ("PUT", 4) => Some(Fault::SlowDown),
        ("PUT", 6) => Some(Fault::DropBody),
        ("PUT", 8) => Some(Fault::Hang),
        ("PUT", n) if path.contains("/workers/") && n % 2 == 0 => Some(Fault::LoseAnswer),
        ("PUT", n) if n % 9 == 0 => Some(Fault::Error),
        ("HEAD", 2) => Some(Fault::Hang),
        ("GET", n) if path.contains("/shard-") && n % 2 == 0 => Some(Fault::CutAnswer),
        _ => None,
    }
}

fn nothing(_: &str, _: &str, _: usize) -> Option<Fault> {
    None
}

/// No shard ever arrives.
fn no_shard(method: &str, path: &str, _: usize) -> Option<Fault> {
    (method == "PUT" && path.contains("/shard-")).then_some(Fault::Error)
}

#[test]
fn a_capture_through_failures_ends_with_the_same_objects() {
    let Some(server) = S3::start(false) else { return };
    let work = Workload::new(1000);
    let expected = undisturbed(&work, &[SAVE]);
    let faulty = Faulty::start(&server.address, everything);
    let credentials = credentials(&faulty.address);
    let to = bucket("a/b");
    let (_, said) = work.succeed(SAVE, &with(&credentials, &[("UPLOAD_TO", to.as_str())]));
    server.contents("a/b").assert_same(&expected, "in the bucket");
    let injected = faulty.injected();
    for fault in [Fault::LoseAnswer, Fault::Error, Fault::SlowDown, Fault::DropBody, Fault::Hang] {
        assert!(injected.get(&fault).is_some_and(|n| *n > 0), "no {fault:?}: {injected:?}");
    }
    assert!(!said.contains(SECRET) && !said.contains(KEY), "{said}");
}

#[test]
fn a_large_shard_goes_up_in_parts_and_comes_back() {
    let Some(server) = S3::start(false) else { return };
    let work = Workload::new(3000);
    let large = ("SHARD_MIB", "64");
    work.succeed(SAVE, &[large]);
    let expected = work.take().without(LOCAL);
    assert!(expected.0.values().any(|bytes| bytes.len() > 17 << 20), "no shard has two parts");
    let faulty = Faulty::start(&server.address, everything);
    let credentials = credentials(&faulty.address);
    let (store, scratch) = (bucket("large"), work.path("scratch"));
    let remote =
        [("STORE_DIR", store.as_str()), ("SLURM_TMPDIR", scratch.to_str().unwrap()), large];
    work.succeed(SAVE, &with(&credentials, &remote));
    server.contents("large").assert_same(&expected, "in the bucket");
    fs_err::remove_dir_all(&scratch).unwrap();
    let (out, _) =
        work.succeed(TRAIN, &with(&credentials, &[&remote[..], &[("CHECK", "1")]].concat()));
    assert!(out.contains("capture     capture"), "{out}");
    assert!(faulty.injected().get(&Fault::CutAnswer).is_some_and(|n| *n > 0));
}

#[test]
fn a_store_that_is_a_bucket_serves_all_stages_on_nodes_without_memory() {
    let Some(server) = S3::start(false) else { return };
    let work = Workload::new(1200);
    let begin = Instant::now();
    work.succeed(SAVE, &[]);
    let span = begin.elapsed();
    let expected = undisturbed(&work, &[SAVE, TRAIN, TOP, EVALUATE]);
    let faulty = Faulty::start(&server.address, nothing);
    let credentials = credentials(&faulty.address);
    let (store, scratch) = (bucket("store"), work.path("scratch"));
    let variables = with(
        &credentials,
        &[("STORE_DIR", store.as_str()), ("SLURM_TMPDIR", scratch.to_str().unwrap())],
    );
    let wipe = |path: &PathBuf| fs_err::remove_dir_all(path).unwrap();
    assert!(torment(&work, (&variables, span), Signal::KILL, &scratch) > 0);
    // The capture that ended may have left its node as it was.
    wipe(&scratch);
    let training = work.stage(TRAIN).envs(variables.iter().copied()).spawn().unwrap();
    while !server.keys("store").iter().any(|name| name.ends_with("latest.json")) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&training), Signal::KILL)
        .unwrap();
    training.wait_with_output().unwrap();
    wipe(&scratch);
    let (_, said) = work.succeed(TRAIN, &variables);
    assert!(said.contains("going on at step"), "{said}");
    wipe(&scratch);
    work.succeed(TOP, &variables);
    wipe(&scratch);
    work.succeed(EVALUATE, &variables);
    let found = server.contents("store").without_differing();
    found.assert_same(&expected, "in the bucket");
    let events = server.keys("store").into_iter().filter(|name| name.contains("tfevents")).count();
    assert_eq!(events, 1, "those of the killed process are gone");
}

#[test]
fn an_upload_that_fails_for_good_keeps_all_and_is_made_up_for() {
    let Some(server) = S3::start(false) else { return };
    let work = Workload::new(200);
    let expected = undisturbed(&work, &[SAVE]);
    let to = bucket("x");
    let broken = credentials(&Faulty::start(&server.address, no_shard).address);
    let mut command = work.stage(SAVE);
    let (code, said) =
        exit(&command.envs(with(&broken, &[("UPLOAD_TO", to.as_str())])).output().unwrap());
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("shard-0-0.safetensors") && said.contains("InternalError"), "{said}");
    assert!(!server.keys("x").iter().any(|name| name.ends_with("0.jsonl")));
    let whole = credentials(&server.address);
    work.succeed(SAVE, &with(&whole, &[("UPLOAD_TO", to.as_str())]));
    server.contents("x").assert_same(&expected, "in the bucket");
    work.take().without(LOCAL).assert_same(&expected, "in the local store");
}

#[test]
fn credentials_that_are_refused_are_not_shown() {
    let Some(server) = S3::start(true) else { return };
    let work = Workload::new(10);
    let (credentials, to) = (credentials(&server.address), bucket("x"));
    for more in [("CHECK", "0"), ("CHECK", "1")] {
        let variables = with(&credentials, &[("UPLOAD_TO", to.as_str()), more]);
        let (code, said) = exit(&work.stage(SAVE).envs(variables).output().unwrap());
        assert_eq!(code, 69, "{said}");
        assert!(said.contains("hint:") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
        assert!(!said.contains(KEY) && !said.contains(SECRET), "{said}");
    }
}
