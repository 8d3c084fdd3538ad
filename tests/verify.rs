//! verify_shards finds and names every kind of damage, and repairs it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::workload::{Contents, Random, SAVE, TRAIN, VERIFY, Workload, succeed};

const HOOK: &str = "llamaforcausallm_model_layers_1_post_attention_layernorm_in";

/// A complete capture of several shards.
fn captured() -> Workload {
    let work = Workload::new(450);
    work.succeed(SAVE, &[]);
    assert!(shards(&work).len() >= 4, "{:?}", shards(&work));
    work
}

fn shards(work: &Workload) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(work.run("capture").join(HOOK)).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// What a verification says: exit code, findings as `kind file`, and the whole JSON.
fn verified(work: &Workload, arguments: &[&str]) -> (i32, Vec<String>, Value) {
    let output = work.stage(VERIFY).arg("--json").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = json["findings"].as_array().unwrap().iter();
    let found = findings.map(|f| format!("{} {}", text(&f["kind"]), text(&f["file"]))).collect();
    (output.status.code().unwrap(), found, json)
}

/// The damage is found, named and repaired: in the end the store is as it was.
fn mended(work: &Workload, what: &str, expected: &[&str], damage: impl FnOnce(&Path)) {
    let undamaged = Contents::read(&work.store());
    damage(&work.run("capture"));
    let (code, found, json) = verified(work, &[]);
    assert_eq!(code, 65, "{what}: {json:#}");
    for finding in expected {
        assert!(found.iter().any(|f| f == finding), "{what}: no `{finding}` in {json:#}");
    }
    let (code, _, json) = verified(work, &["--repair"]);
    assert_eq!(code, 0, "{what}: {json:#}");
    recaptured(work, &undamaged, what);
}

/// After a repair: readers refuse the run, 01 mends it, and only the quarantine is left.
fn recaptured(work: &Workload, undamaged: &Contents, what: &str) {
    let refused = work.stage(TRAIN).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(65), "{what}: {said}");
    assert!(said.contains("not complete") && said.contains("run 01_save_activations"), "{said}");
    work.succeed(SAVE, &[]);
    let (code, _, json) = verified(work, &[]);
    assert_eq!(code, 0, "{what}: {json:#}");
    let quarantine = work.run("capture").join("quarantine");
    if quarantine.exists() {
        fs_err::remove_dir_all(quarantine).unwrap();
    }
    Contents::read(&work.store()).assert_same(undamaged, what);
}

fn edited(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs_err::read(path).unwrap();
    edit(&mut bytes);
    fs_err::write(path, bytes).unwrap();
}

/// Changes the second line of a worker's file, and of the manifest.
fn edited_line(run: &Path, edit: impl Fn(&mut Value)) {
    for file in ["workers/0.jsonl", "manifest.jsonl"] {
        let path = run.join(file);
        let text = fs_err::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut line: Value = serde_json::from_str(&lines[1]).unwrap();
        edit(&mut line);
        lines[1] = line.to_string();
        fs_err::write(&path, lines.join("\n") + "\n").unwrap();
    }
}

fn without_line(path: &Path) {
    let text = fs_err::read_to_string(path).unwrap();
    let kept = text.lines().enumerate().filter(|(i, _)| *i != 1).map(|(_, line)| line);
    fs_err::write(path, kept.collect::<Vec<_>>().join("\n") + "\n").unwrap();
}

fn with_line_twice(path: &Path) {
    let text = fs_err::read_to_string(path).unwrap();
    let second = text.lines().nth(1).unwrap();
    fs_err::write(path, text.replacen(second, &format!("{second}\n{second}"), 1)).unwrap();
}

#[test]
fn nothing_is_found_on_a_clean_run_complete_or_not() {
    let work = captured();
    let before = Contents::read(&work.store());
    let (table, _) = work.succeed(VERIFY, &[]);
    assert!(table.contains("run `capture` (complete)") && table.contains("checked"), "{table}");
    let (code, found, json) = verified(&work, &["--fast"]);
    assert_eq!((code, found.len(), &json["complete"]), (0, 0, &Value::Bool(true)), "{json:#}");
    work.succeed(VERIFY, &[("REPAIR", "1")]);
    Contents::read(&work.store()).assert_same(&before, "a repair of a clean run");

    let variables = [("RUN_ID", "two"), ("WORKERS", "2"), ("WORKER", "0")];
    work.succeed(SAVE, &variables);
    let (code, found, json) = verified(&work, &["--run-id", "two"]);
    assert_eq!((code, found.len(), &json["complete"]), (0, 0, &Value::Bool(false)), "{json:#}");
}

#[test]
fn damaged_files_are_found_named_and_captured_again() {
    let work = captured();
    let name = |i: usize| format!("{HOOK}/shard-0-{i}.safetensors");
    let token = "tokens/shard-0-1.safetensors";
    let all = [name(0), name(1), name(2)];
    let found = |kind: &str, i: usize| format!("{kind} {}", all[i]);
    mended(&work, "payload", &[&found("digest", 1), &found("statistics", 1)], |run| {
        edited(&run.join(&all[1]), |bytes| bytes[5000] ^= 0x10);
    });
    mended(&work, "header", &[&found("digest", 0), &found("header", 0)], |run| {
        edited(&run.join(&all[0]), |bytes| bytes[9] = b'!');
    });
    mended(&work, "tokens", &[&format!("digest {token}")], |run| {
        edited(&run.join(token), |bytes| *bytes.last_mut().unwrap() ^= 1);
    });
    mended(&work, "truncation", &[&found("length", 2), &format!("length {token}")], |run| {
        edited(&run.join(&all[2]), |bytes| bytes.truncate(6000));
        edited(&run.join(token), |bytes| bytes.truncate(100));
    });
    mended(&work, "deletion", &[&found("missing", 0), &format!("missing {token}")], |run| {
        fs_err::remove_file(run.join(&all[0])).unwrap();
        fs_err::remove_file(run.join(token)).unwrap();
    });
    mended(&work, "swap", &[&found("digest", 1), &found("digest", 2)], |run| {
        fs_err::rename(run.join(&all[1]), run.join("aside")).unwrap();
        fs_err::rename(run.join(&all[2]), run.join(&all[1])).unwrap();
        fs_err::rename(run.join("aside"), run.join(&all[2])).unwrap();
    });
}

#[test]
fn damage_that_has_a_right_digest_is_found() {
    let work = captured();
    let file = format!("{HOOK}/shard-0-1.safetensors");
    let signed = |run: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        edited(&run.join(&file), |bytes| change(bytes));
        let digest = blake3::hash(&fs_err::read(run.join(&file)).unwrap()).to_hex().to_string();
        edited_line(run, |line| line["hooks"][0]["file"]["blake3"] = digest.clone().into());
    };
    let found = |kind: &str| format!("{kind} {file}");
    mended(&work, "NaN", &[&found("not_finite")], |run| {
        signed(run, &|bytes| bytes[4096..4098].copy_from_slice(&[0, 0x7e]));
    });
    mended(&work, "another value", &[&found("statistics")], |run| {
        signed(run, &|bytes| bytes[4097] ^= 0x10);
    });
    mended(&work, "another hook", &[&found("metadata")], |run| {
        signed(run, &|bytes| {
            let at = bytes.windows(6).position(|w| w == b"layers").unwrap();
            bytes[at] = b'L';
        });
    });
    mended(&work, "rows", &[&found("rows"), "rows tokens/shard-0-1.safetensors"], |run| {
        edited_line(run, |line| line["rows"] = (line["rows"].as_u64().unwrap() + 1).into());
    });
    let tokens = "tokens/shard-0-1.safetensors";
    mended(&work, "documents", &[&format!("documents {tokens}")], |run| {
        let path = run.join(tokens);
        let bytes = fs_err::read(&path).unwrap();
        let open = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let documents = open.tensor("document").unwrap().data().as_ptr() as usize;
        let at = documents - bytes.as_ptr() as usize;
        edited(&path, |bytes| bytes[at + 8..at + 16].copy_from_slice(&7_u64.to_le_bytes()));
        let digest = blake3::hash(&fs_err::read(&path).unwrap()).to_hex().to_string();
        edited_line(run, |line| line["tokens"]["blake3"] = digest.clone().into());
    });
}

#[test]
fn damaged_records_are_found_and_written_anew() {
    let work = captured();
    let lines = |run: &Path| run.join("workers/0.jsonl");
    let manifest = |run: &Path| run.join("manifest.jsonl");
    mended(&work, "a line twice", &["overlap workers/0.jsonl"], |run| with_line_twice(&lines(run)));
    mended(&work, "a lost line", &["gap workers/0.jsonl"], |run| without_line(&lines(run)));
    mended(&work, "a line lost twice", &["gap workers/0.jsonl"], |run| {
        without_line(&lines(run));
        without_line(&manifest(run));
    });
    mended(&work, "a broken line", &["line workers/0.jsonl"], |run| {
        edited(&lines(run), |bytes| bytes[3] = b'!');
    });
    mended(&work, "a path that leads away", &["line workers/0.jsonl"], |run| {
        edited_line(run, |line| line["tokens"]["path"] = "../../../text.jsonl".into());
    });
    mended(&work, "manifest, twice", &["manifest manifest.jsonl"], |run| {
        with_line_twice(&manifest(run));
    });
    mended(&work, "manifest, lost", &["manifest manifest.jsonl"], |run| {
        without_line(&manifest(run));
    });
    mended(&work, "no manifest", &["missing manifest.jsonl"], |run| {
        fs_err::remove_file(manifest(run)).unwrap();
    });
    mended(&work, "totals", &["totals meta.json"], |run| {
        let path = run.join("meta.json");
        let mut meta: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        meta["totals"]["rows"] = 5.into();
        fs_err::write(path, meta.to_string()).unwrap();
    });
    assert!(work.path("text.jsonl").exists(), "a manifest led a repair out of the run");
}

#[test]
fn foreign_files_are_reported_and_left_alone() {
    let work = captured();
    let foreign = work.run("capture").join(HOOK).join("notes.txt");
    fs_err::write(&foreign, "mine").unwrap();
    for arguments in [&[][..], &["--repair"]] {
        let (code, found, _) = verified(&work, arguments);
        assert_eq!((code, &found[..]), (65, &[format!("foreign {HOOK}/notes.txt")][..]));
        assert_eq!(fs_err::read_to_string(&foreign).unwrap(), "mine");
    }
    assert!(work.run("capture").join("manifest.jsonl").exists());
    let said = work.stage(VERIFY).output().unwrap();
    let table = String::from_utf8(said.stdout).unwrap();
    assert!(table.contains("KIND") && table.contains("foreign"), "{table}");
}

#[test]
fn a_repair_says_what_it_did_and_what_to_run() {
    let work = captured();
    edited(&shards(&work)[1], |bytes| bytes[5000] ^= 1);
    let output = work.stage(VERIFY).arg("--repair").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for words in ["digest", "2 files are in quarantine/1", "RUN_ID=capture", "01_save_activations"]
    {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    // The command as it is printed, with nothing else of the job.
    let line = said.lines().find(|line| line.contains("RUN_ID=")).unwrap();
    let mut shell = work.stage("/bin/sh");
    let folder = Path::new(SAVE).parent().unwrap();
    shell.env_clear().env("PATH", folder).env("STORE_DIR", work.store()).args(["-c", line]);
    let (_, log) = succeed(&mut shell);
    assert!(log.contains("is complete"), "{log}");
}

#[test]
fn a_worker_at_work_is_not_disturbed() {
    let work = captured();
    edited(&shards(&work)[1], |bytes| bytes[5000] ^= 1);
    let before = Contents::read(&work.store());
    let lock = fs_err::File::create(work.run("capture").join("workers/0.lock")).unwrap();
    lock.file().lock().unwrap();
    let output = work.stage(VERIFY).arg("--repair").output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));
    Contents::read(&work.store()).assert_same(&before, "a refused repair");
}

/// Starts a stage and kills it after `delay`.
fn killed(work: &Workload, stage: &str, arguments: &[&str], delay: Duration) {
    let mut child = work
        .stage(stage)
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(delay);
    // It may have ended.
    let _ended = kill_process(Pid::from_child(&child), Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn repairs_and_recaptures_that_are_killed_are_finished_by_the_next_ones() {
    let work = captured();
    let undamaged = Contents::read(&work.store());
    let began = std::time::Instant::now();
    verified(&work, &["--repair"]);
    let verifying = began.elapsed();
    let mut random = Random(3);
    for round in 0..8 {
        let all = shards(&work);
        for shard in [0, all.len() / 2, all.len() - 1] {
            edited(&all[shard], |bytes| bytes[5000] ^= 1);
        }
        for _ in 0..3 {
            killed(&work, VERIFY, &["--repair"], verifying.mul_f64(random.fraction() * 1.5));
        }
        let (code, _, json) = verified(&work, &["--repair"]);
        assert_eq!(code, 0, "round {round}: {json:#}");
        for _ in 0..3 {
            killed(&work, SAVE, &[], Duration::from_millis(random.below(600) as u64));
        }
        work.succeed(SAVE, &[]);
        let (code, _, json) = verified(&work, &[]);
        assert_eq!(code, 0, "round {round}: {json:#}");
        fs_err::remove_dir_all(work.run("capture").join("quarantine")).unwrap();
        Contents::read(&work.store()).assert_same(&undamaged, &format!("round {round}"));
    }
}

#[test]
fn an_unfinished_shard_that_is_damaged_is_dropped() {
    let work = Workload::new(3000);
    work.succeed(SAVE, &[]);
    let undamaged = work.take();
    let mut child = work.stage(SAVE).stderr(std::process::Stdio::null()).spawn().unwrap();
    let begun = || work.run("capture").join(HOOK).join("shard-0-1.partial").exists();
    while !begun() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let unfinished = shards(&work).into_iter().find(|p| p.to_string_lossy().contains(".until-"));
    edited(&unfinished.unwrap(), |bytes| bytes[5000] ^= 1);
    assert_eq!(verified(&work, &[]).0, 65);
    assert_eq!(verified(&work, &["--repair"]).0, 0);
    recaptured(&work, &undamaged, "an unfinished shard");
}
