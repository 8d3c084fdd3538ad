//! Progress files, and pipeline_status over them and over recorded answers of SLURM.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::workload::{SAVE, STATUS, TOP, TRAIN, Workload};

/// A capture by four workers, of which the first is done.
struct Run {
    work: Workload,
}

impl Run {
    fn new() -> Self {
        let work = Workload::new(400);
        work.succeed(SAVE, &[("WORKERS", "4"), ("WORKER", "0")]);
        fs_err::create_dir(work.path("bin")).unwrap();
        Self { work }
    }

    /// What a worker said `seconds` ago, with some fields changed.
    fn heard(&self, worker: usize, seconds: u64, changes: Value) {
        let mut beat = json!({
            "schema": 1, "stage": "save_activations", "worker": worker, "workers": 4,
            "state": "running", "unit": "documents", "done": 25, "total": 100, "rows": 2000,
            "shards": 3, "tokens": 2100, "tokens_per_second": 1850.4, "eta_seconds": 62.0,
            "started": time(seconds + 60), "updated": time(seconds), "host": "n7", "pid": 1,
            "job": format!("70_{worker}"), "restarts": 1, "note": "",
        });
        beat.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        self.write(&format!("save_activations-{worker}.json"), &beat.to_string());
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.work.run("capture").join("progress").join(name), text).unwrap();
    }

    /// A program that answers with these lines.
    fn answers(&self, program: &str, lines: &str) {
        let path = self.work.path("bin").join(program);
        let script =
            format!("#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{lines}END\n");
        fs_err::write(&path, script).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn status(&self, arguments: &[&str]) -> Command {
        let mut command = self.work.stage(STATUS);
        command.env("PATH", self.work.path("bin")).args(arguments);
        command
    }

    fn table(&self) -> String {
        let output = self.status(&[]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self) -> Value {
        let output = self.status(&["--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The state of a worker of the capture.
    fn state(&self, worker: usize) -> String {
        self.json()["stages"][0]["workers"][worker]["state"].as_str().unwrap().to_owned()
    }
}

/// So many seconds ago, as RFC 3339.
fn time(ago: u64) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    jiff::Timestamp::from_second((since.as_secs() - ago) as i64).unwrap().to_string()
}

/// The cells of a worker's row.
fn row<'a>(table: &'a str, worker: &str) -> Vec<&'a str> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter().find(|cells| cells.get(1) == Some(&worker)).unwrap()
}

#[test]
fn one_table_tells_who_runs_who_is_silent_who_is_gone_and_who_waits() {
    let run = Run::new();
    run.heard(1, 3, json!({}));
    run.heard(2, 500, json!({"restarts": 4}));
    run.heard(3, 10, json!({"job": "69_3"}));
    run.answers(
        "squeue",
        "70_1|RUNNING|None|save_activations\n70_2|RUNNING|None|save_activations\n\
                           71|PENDING|Dependency|train_sae\n99|RUNNING|None|somebody else's\n",
    );
    run.answers("sacct", "69_3|NODE_FAIL|1:0|00:10:00\n");
    let table = run.table();
    assert_eq!(&row(&table, "0")[2..6], ["done", "-", "100/100", "100"], "{table}");
    let running = ["running", "70_1", "25/100", "25", "1,850", "0:01:02", "1"];
    assert_eq!(row(&table, "1")[2..9], running, "{table}");
    // The machine may be busy meanwhile.
    let heard: u32 = row(&table, "1")[9].parse().unwrap();
    assert!((3..30).contains(&heard), "{table}");
    assert_eq!(row(&table, "1")[10..], ["s", "n7"], "{table}");
    assert_eq!(row(&table, "2")[2..4], ["stalled!", "70_2"], "{table}");
    assert_eq!(row(&table, "3")[2..5], ["lost!", "69_3", "25/100"], "{table}");
    assert!(row(&table, "total").join(" ").contains("1/4 done 175/400 43 1,850"), "{table}");
    assert!(table.contains("train_sae") && table.contains("PENDING (Dependency)"), "{table}");
    assert!(table.contains("save_activations 3: lost! (NODE_FAIL)"), "{table}");
    assert!(
        table.contains("5 workers: 1 running, 1 stalled!, 1 lost!, 1 PENDING, 1 done"),
        "{table}"
    );
    assert!(!table.contains("somebody"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");

    let json = run.json();
    let states: Vec<&Value> =
        json["stages"][0]["workers"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["done", "running", "stalled", "lost"]);
    assert_eq!(json["stages"][0]["workers"][1]["heartbeat"]["rows"], 2000);
    let patient = run.status(&["--stall-after", "1000", "--json"]).output().unwrap();
    assert!(!String::from_utf8(patient.stdout).unwrap().contains("stalled"));
}

#[test]
fn a_state_of_slurm_is_shown_in_its_own_words() {
    let run = Run::new();
    run.heard(1, 3, json!({}));
    for state in
        ["CONFIGURING", "COMPLETING", "REQUEUED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "MOONLIT"]
    {
        run.answers("squeue", &format!("70_1|{state}|None|save_activations\n"));
        assert_eq!(run.state(1), state);
        assert_eq!(row(&run.table(), "1")[2], state);
    }
    run.heard(1, 3, json!({"state": "stopped"}));
    run.answers("squeue", "70_1|PENDING|BeginTime|save_activations\n");
    assert!(run.table().contains("save_activations 1: PENDING (BeginTime)"));
    run.answers("squeue", "");
    assert_eq!(run.state(1), "stopped");
    for (state, shown) in [("failed", "failed"), ("running", "lost")] {
        run.heard(1, 3, json!({"state": state, "note": "the disk is full"}));
        assert_eq!(run.state(1), shown);
    }
    run.heard(1, 3, json!({"state": "failed", "note": "the disk is full"}));
    let table = run.table();
    assert!(table.contains("save_activations 1: failed! (the disk is full)"), "{table}");
    run.answers("squeue", "70_2|PENDING|JobArrayTaskLimit|save_activations\n");
    assert_eq!((&run.state(2)[..], &run.state(3)[..]), ("PENDING", "waiting"));
}

#[test]
fn without_slurm_the_files_tell_and_a_line_says_so() {
    let run = Run::new();
    run.heard(1, 3, json!({}));
    run.heard(2, 500, json!({}));
    let table = run.table();
    assert_eq!((row(&table, "1")[2], row(&table, "2")[2]), ("running", "stalled!"), "{table}");
    assert_eq!(table.matches("no squeue here").count(), 1, "{table}");
    // A controller that is down, accounting that is off.
    run.answers("squeue", "");
    let table = run.table();
    assert_eq!(table.matches("no sacct here").count(), 1, "{table}");
    let down =
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n";
    fs_err::write(run.work.path("bin/squeue"), down).unwrap();
    let table = run.table();
    assert!(table.contains("Unable to contact slurm controller"), "{table}");
    assert_eq!(row(&table, "1")[2], "running", "{table}");
    // A process of this machine that is gone.
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap();
    run.heard(1, 3, json!({"job": null, "host": host.trim(), "pid": 4_194_305}));
    assert_eq!(run.state(1), "lost");
    run.heard(1, 3, json!({"job": null, "host": host.trim(), "pid": std::process::id()}));
    assert_eq!(run.state(1), "running");
}

#[test]
fn files_that_cannot_be_read_are_named_and_the_rest_is_shown() {
    let run = Run::new();
    run.heard(1, 3, json!({}));
    run.heard(2, 3, json!({"schema": 2}));
    run.write("save_activations-3.json", "{\"schema\": 1, ");
    run.write("save_activations-3.json.partial", "{");
    let output = run.status(&[]).output().unwrap();
    let (table, said) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert_eq!(row(&table, "1")[2], "running");
    assert!(table.contains("save_activations-2.json") && table.contains("schema is 2"), "{table}");
    assert!(table.contains("save_activations-3.json") && !table.contains("partial"), "{table}");
    assert!(said.contains("error: a file of the run cannot be read"), "{said}");
}

#[test]
fn watching_ends_with_a_signal_and_exit_code_0() {
    let run = Run::new();
    let mut child = run
        .status(&["--watch=1", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["run_id"], "capture");
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn progress(work: &Workload, run: &str, name: &str) -> Value {
    let path: PathBuf = work.run(run).join("progress").join(name);
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

#[test]
fn every_stage_keeps_a_progress_file() {
    let work = Workload::new(300);
    for stage in [SAVE, TRAIN, TOP] {
        work.succeed(stage, &[]);
    }
    let meta: Value =
        serde_json::from_slice(&fs_err::read(work.run("capture").join("meta.json")).unwrap())
            .unwrap();
    let save = progress(&work, "capture", "save_activations-0.json");
    let train = progress(&work, "training", "train_sae-0.json");
    let top = progress(&work, "training", "top_sentences-0.json");
    for (beat, unit) in [(&save, "documents"), (&train, "steps"), (&top, "latents")] {
        assert_eq!((&beat["state"], &beat["unit"]), (&"done".into(), &unit.into()), "{beat:#}");
        assert_eq!(beat["done"], beat["total"], "{beat:#}");
        assert!(beat["tokens_per_second"].as_f64().unwrap() > 0.0, "{beat:#}");
    }
    let totals = &meta["totals"];
    for (ours, theirs) in [("rows", "rows"), ("shards", "shards"), ("tokens", "tokens_seen")] {
        assert_eq!(save[ours], totals[theirs], "{save:#}");
    }
    let (table, _) = work.succeed(STATUS, &[("PATH", "")]);
    assert!(table.contains("3 workers: 3 done"), "{table}");
    // Runs of an older version have no such files.
    for run in ["capture", "training"] {
        fs_err::remove_dir_all(work.run(run).join("progress")).unwrap();
    }
    let (table, _) = work.succeed(STATUS, &[("PATH", "")]);
    assert!(table.contains("2 workers: 2 done"), "{table}");
}

#[test]
fn a_worker_that_is_stopped_or_fails_says_so_and_counts_its_restarts() {
    let work = Workload::new(3000);
    let mut child = work.stage(SAVE).stderr(Stdio::null()).spawn().unwrap();
    while !work.run("capture").join("progress/save_activations-0.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let beat = progress(&work, "capture", "save_activations-0.json");
    assert_eq!((&beat["state"], &beat["restarts"]), (&"stopped".into(), &0.into()), "{beat:#}");
    // No run is complete: the newest one is shown.
    let (table, _) = work.succeed(STATUS, &[("RUN_ID", ""), ("PATH", "")]);
    assert!(table.contains("run capture") && table.contains("stopped"), "{table}");

    let lines = work.run("capture").join("workers/0.jsonl");
    let good = fs_err::read(&lines).unwrap_or_default();
    fs_err::write(&lines, "broken\n").unwrap();
    assert_eq!(work.stage(SAVE).output().unwrap().status.code(), Some(65));
    let beat = progress(&work, "capture", "save_activations-0.json");
    assert_eq!(beat["state"], "failed", "{beat:#}");
    assert!(beat["note"].as_str().unwrap().contains("workers/0.jsonl"), "{beat:#}");
    fs_err::write(&lines, good).unwrap();
    let queued = [("SLURM_JOB_ID", "12"), ("SLURM_RESTART_COUNT", "7"), ("SLURMD_NODENAME", "n3")];
    work.succeed(SAVE, &queued);
    let beat = progress(&work, "capture", "save_activations-0.json");
    assert_eq!((&beat["state"], &beat["restarts"]), (&"done".into(), &7.into()), "{beat:#}");
    assert_eq!((&beat["job"], &beat["host"]), (&"12".into(), &"n3".into()), "{beat:#}");
}
