//! plan_run through its command line: budgets, laws of small trainings, and the settings it writes.

use std::process::Command;

use serde_json::Value;

use super::workload::{PLAN, SAVE, TRAIN, Workload, succeed};

/// Three widths, two of them with three learning rates each.
const SMALL: &str = "
- {name: a1, d_sae: 32, lr: 0.003}
- {name: a2, d_sae: 32, lr: 0.01}
- {name: a3, d_sae: 32, lr: 0.03}
- {name: b1, d_sae: 64, lr: 0.003}
- {name: b2, d_sae: 64, lr: 0.01}
- {name: b3, d_sae: 64, lr: 0.03}
- {name: c2, d_sae: 128, lr: 0.01}
";

fn captured() -> Workload {
    let work = Workload::new(150);
    work.succeed(SAVE, &[]);
    work
}

fn plan(work: &Workload) -> Command {
    let mut command = work.stage(PLAN);
    command.env_remove("SAE_RUN_ID").env("TOKENS_PER_SECOND", "1000");
    command
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&succeed(command.env("JSON", "1")).0).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The memory line of a table, up to a colon.
fn memory(table: &str) -> &str {
    let line = table.lines().find(|line| line.starts_with("memory")).unwrap();
    line["memory".len()..].split(':').next().unwrap().trim()
}

#[test]
fn a_budget_is_that_of_the_training() {
    let work = captured();
    let (table, _) = succeed(&mut plan(&work));
    for words in
        ["capture     capture", "TopK", "FLOP a token", "1,000 tokens/s, as given", "--time="]
    {
        assert!(table.contains(words) || table.contains(&words.to_lowercase()), "{words}: {table}");
    }
    let check = succeed(work.stage(TRAIN).arg("--check")).0;
    assert_eq!(memory(&table), memory(&check));
    let answer = json(&mut plan(&work));
    succeed(&mut work.stage(TRAIN));
    let meta = fs_err::read(work.run("training").join("meta.json")).unwrap();
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    assert_eq!(answer["budget"]["tokens"], meta["tokens"]);
    assert_eq!(answer["budget"]["steps"], meta["steps"]);
    assert!((number(&answer["hours"]) * 3.6e6 / number(&meta["tokens"]) - 1.0).abs() < 1e-9);
    let checkpoints = fs_err::read_dir(work.run("training").join("checkpoints")).unwrap();
    let newest = checkpoints.map(|entry| entry.unwrap().path()).max().unwrap();
    let stored = fs_err::metadata(newest).unwrap().len() as f64;
    let said = number(&answer["budget"]["checkpoint"]);
    assert!((stored / said - 1.0).abs() < 0.05, "a checkpoint has {stored} bytes, not {said}");
}

#[test]
fn without_a_capture_the_width_and_the_tokens_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PLAN);
        command.env_clear().current_dir(dir.path()).args(arguments).output().unwrap()
    };
    let enough = ["--d-in=48", "--d-sae=4096", "--tokens=1000000", "--probe-seconds=0.2"];
    let output = run(&enough);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("measured here on"), "{table}");
    assert!(table.contains("none yet") && table.contains("4,096"), "{table}");
    for (arguments, words) in [
        (&["--d-in=48"][..], "TOKENS is not"),
        (&["--d-in=48", "--tokens=100000", "--run-id=x"], "D_IN is given along with"),
        (&["--d-in=48", "--tokens=100"], "only 100 rows"),
        (&["--d-in=48", "--tokens=100000", "--output=plan.txt"], "not the name of a .yaml"),
        (&["--d-in=48", "--tokens=100000", "--probe-seconds=0"], "a number above 0"),
        (
            &["--d-in=48", "--tokens=100000", "--from-runs=no-*"],
            "no finished training is called `no-*`",
        ),
    ] {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "`{words}` is missing from: {said}");
    }
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn small_trainings_make_a_plan_that_02_accepts() {
    let work = captured();
    fs_err::write(work.path("sweep.yaml"), SMALL).unwrap();
    succeed(work.stage(TRAIN).env("SWEEP", "sweep.yaml"));
    let large = || {
        let mut command = plan(&work);
        command.envs([("FROM_RUNS", "training-?1 training-?2,training-*3"), ("D_SAE", "512")]);
        command.env("OUTPUT", "large.yaml").env("SEED", "7");
        command
    };
    let (table, said) = succeed(&mut large());
    assert!(said.contains("`large.yaml` and `large.html`"), "{said}");
    for words in ["training-a1", "exponent of d_sae", "expected", "beyond the trainings'", "LR"] {
        assert!(table.contains(words), "`{words}` is missing from: {table}");
    }
    let answer = json(&mut large());
    let forecast = &answer["forecast"];
    assert_eq!(forecast["runs"].as_array().unwrap().len(), 7);
    assert_eq!(forecast["optima"].as_array().unwrap().len(), 2);
    let fvu = number(&forecast["fvu"]["prediction"]["value"]);
    assert!(fvu > 0.0 && fvu < 1.0, "{fvu}");
    assert!(
        number(&forecast["fvu"]["exponents"][0][1]["value"]) < 0.0,
        "wider is better: {forecast}"
    );

    let mut train = work.stage(TRAIN);
    train.env_remove("TOP_K").env_remove("EPOCHS").env_remove("BATCH_SIZE_TRAIN");
    train.env_remove("RUN_ID").env_remove("N_LATENTS_MULTIPLIER").env("CONFIG", "large.yaml");
    let (config, _) = succeed(train.arg("--print-config"));
    let value = |key: &str| {
        let line = config.lines().find(|l| l.split_whitespace().next() == Some(key)).unwrap();
        let mut words = line.split_whitespace().skip(1);
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    for (key, expected) in [
        ("D_SAE", "512"),
        ("TOP_K", "4"),
        ("SEED", "7"),
        ("BATCH_SIZE_TRAIN", "256"),
        ("EPOCHS", "2"),
        ("RUN_ID", "capture"),
    ] {
        assert_eq!(value(key), (expected.to_owned(), "large.yaml".to_owned()));
    }
    let lr: f64 = value("LR").0.parse().unwrap();
    assert!((lr / number(&forecast["lr"]) - 1.0).abs() < 0.01, "{lr}");
    let page = fs_err::read_to_string(work.path("large.html")).unwrap();
    assert!(page.contains("<polyline") && page.contains("FVU by d_sae"), "{page}");
    assert!(!page.contains("http"), "the page stands alone");
}

#[test]
fn trainings_that_cannot_tell_are_refused() {
    let work = captured();
    fs_err::write(work.path("sweep.yaml"), "[{name: a}, {name: b, sae_arch: jumprelu}]").unwrap();
    succeed(work.stage(TRAIN).env("SWEEP", "sweep.yaml").env_remove("TOP_K"));
    for (names, code, words) in [
        ("training-a", 2, "FROM_RUNS names 1 finished training"),
        ("training-*", 2, "its SAE_ARCH is `jumprelu`, expected `topk`"),
        ("training-a,nothing", 2, "`nothing`"),
        ("training-a,capture", 65, "capture"),
        ("training-[", 2, "is not a pattern"),
    ] {
        let output = plan(&work).env("FROM_RUNS", names).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{names}: {said}");
        assert!(said.contains(words), "`{words}` is missing from: {said}");
    }
}
