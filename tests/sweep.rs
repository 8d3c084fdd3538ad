//! Several SAEs over one capture: in one read of the rows, and one by one as in a job array.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::workload::{Contents, Random, SAVE, TRAIN, Workload, succeed};

/// Two that see the same batches, one of which is shorter, and one with another order.
const ENTRIES: &str = "
- {name: base, top_k: 4}
- {name: short, sae_arch: jumprelu, epochs: 1, seed: 3, data_seed: 0}
- {top_k: 8, seed: 1}
";
const RUNS: [&str; 3] = ["training-base", "training-short", "training-2"];

/// A captured job with a list of SAEs.
fn captured(documents: usize, entries: &str) -> Workload {
    let work = Workload::new(documents);
    work.succeed(SAVE, &[]);
    fs_err::write(work.path("sweep.yaml"), entries).unwrap();
    work
}

fn sweep(work: &Workload) -> Command {
    let mut command = work.stage(TRAIN);
    command.env("SWEEP", "sweep.yaml").env("LOG_EVERY", "5").env("CHECKPOINT_EVERY", "7");
    ["TOP_K", "EPOCHS"].iter().for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// Takes the trainings out of the store.
fn take(work: &Workload) -> Contents {
    let contents = Contents::read(&work.store());
    RUNS.iter().for_each(|run| fs_err::remove_dir_all(work.run(run)).unwrap_or_default());
    fs_err::remove_file(work.store().join("sae_run_id.txt")).unwrap();
    contents
}

#[test]
fn saes_come_out_the_same_alone_together_and_through_kills() {
    let work = captured(150, ENTRIES);
    let (table, said) = succeed(&mut sweep(&work));
    assert!(said.contains("3 SAEs in 2 reads of the rows"), "{said}");
    let head = table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(head[..4], ["SAE", "TOP_K", "DATA_SEED", "EPOCHS"]);
    assert_eq!(table.matches("done").count(), 3, "{table}");
    let together = take(&work);
    for run in RUNS {
        assert!(together.names().any(|name| name.ends_with(format!("{run}/meta.json"))), "{run}");
    }

    for task in ["0", "1", "2"] {
        let (table, _) = succeed(sweep(&work).env("SLURM_ARRAY_TASK_ID", task));
        assert_eq!(table.matches("done").count().to_string(), table_count(task), "{table}");
    }
    take(&work).assert_same(&together, "one by one");

    let mut random = Random(5);
    for run in RUNS.iter().chain(&RUNS) {
        let mut child = sweep(&work).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (curve, lines) = (work.run(run).join("history.jsonl"), 2 + random.below(6));
        let written = || fs_err::read_to_string(&curve).unwrap_or_default().lines().count();
        while child.try_wait().unwrap().is_none() && written() < lines {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // It may have ended since.
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap_or_default();
        child.wait().unwrap();
    }
    succeed(&mut sweep(&work));
    take(&work).assert_same(&together, "kill -9");
}

/// How many are done after the elements up to `task`.
fn table_count(task: &str) -> String {
    (task.parse::<usize>().unwrap() + 1).to_string()
}

#[test]
fn one_that_diverges_stops_alone_and_the_table_says_so() {
    let work = captured(60, "[{name: good, top_k: 4}, {name: bad, lr: 1e30, warmup: 0}]");
    let output = sweep(&work).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("1 of 2 SAEs are not trained, `training-bad` first"), "{said}");
    assert!(said.contains("training diverged at step 1: the loss is "), "{said}");
    assert!(work.run("training-good").join("meta.json").exists());
    let (table, _) = succeed(sweep(&work).env("COMPARE", "1"));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].starts_with("training-good") && lines[1].ends_with("done"), "{table}");
    assert!(lines[2].starts_with("training-bad") && lines[2].contains("failed at step"), "{table}");
    let sweeps = work.store().join("sweeps/training");
    let json = fs_err::read(sweeps.join("sweep.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&json).unwrap();
    assert_eq!(rows[0]["settings"]["top_k"], "4");
    assert!(rows[0]["fvu"].as_f64().unwrap() < 1.0 && rows[0]["held_out"] == true);
    let page = fs_err::read_to_string(sweeps.join("sweep.html")).unwrap();
    assert!(page.contains("<polyline") && !page.contains("http"), "{page}");
}

#[test]
fn lists_that_make_no_sense_are_refused_before_anything_is_trained() {
    let work = captured(60, "[]");
    let refused = |entries: &str, variable: (&str, &str), words: &[&str]| {
        fs_err::write(work.path("sweep.yaml"), entries).unwrap();
        let output = sweep(&work).env(variable.0, variable.1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{entries}: {said}");
        words.iter().for_each(|w| assert!(said.contains(w), "`{w}` is missing from {said}"));
    };
    let none = ("SEED", "0");
    let one = "[{top_k: 4}]";
    refused("[]", none, &["the list is empty"]);
    refused("top_k: 4", none, &["sweep.yaml", "expected a list of maps"]);
    refused("[{topk: 4}]", none, &["unknown key `topk`", "did you mean `top_k`?"]);
    refused("[{store_dir: x}]", none, &["`store_dir` is of all entries"]);
    refused("[{top_k: many}]", none, &["many", "key `top_k` of `sweep.yaml#0`"]);
    refused("[{name: a}, {name: a}]", none, &["two entries are called `a`"]);
    refused("[{name: a/b}]", none, &["training-a/b"]);
    refused("[{top_k: 4}, {top_k: 4000}]", none, &["TOP_K (or K_START) is 4000"]);
    refused("[{seed: 1}]", none, &["SEED is set by `sweep.yaml#0` and by the environment"]);
    refused(one, ("SWEEP_TASK", "1"), &["no entry 1 in SWEEP", "--array=0-0"]);
    assert!(fs_err::read_dir(work.store().join("runs")).unwrap().count() == 1, "only the capture");
}
