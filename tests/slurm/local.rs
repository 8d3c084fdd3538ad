//! The scripts without a cluster: syntax, help, `env.sh`, `run_local.sh`.

use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Workplace, repository, script, within};

const STAGES: [&str; 4] = ["prepare_data", "save_activations", "train_sae", "top_sentences"];

fn scripts() -> Vec<std::path::PathBuf> {
    let entries = fs_err::read_dir(repository().join("slurm")).unwrap();
    entries.map(|e| e.unwrap().path()).filter(|p| p.extension() == Some("sh".as_ref())).collect()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn scripts_parse_and_pass_shellcheck() {
    let scripts = scripts();
    assert_eq!(scripts.len(), 10);
    let bash = Command::new("bash").arg("-n").args(&scripts).output().unwrap();
    assert!(bash.status.success(), "{}", text(&bash));
    let others = ["up", "down", "daemon"].map(|name| format!("tests/slurm/cluster/{name}"));
    let more = [
        "tests/slurm/fake_stage",
        "tests/run.sh",
        "tests/npm.sh",
        "tests/venv.sh",
        "tests/cuda/nvcc-none",
        ".ci/run",
    ];
    let mut check = Command::new("shellcheck");
    check.current_dir(repository()).arg("-x").args(&scripts).args(others).args(more);
    match check.output() {
        Ok(output) => assert!(output.status.success(), "{}", text(&output)),
        Err(error) => panic!("shellcheck cannot be run ({error}); tests/run.sh installs it"),
    }
}

#[test]
fn every_script_that_is_run_explains_itself() {
    let work = Workplace::new();
    let run = scripts().into_iter().filter(|p| !p.ends_with("env.sh") && !p.ends_with("stage.sh"));
    for script in run {
        let output = work.command(&script).arg("--help").output().unwrap();
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.starts_with("usage: ") && text.contains("\n  "), "no example: {text}");
    }
    assert!(work.calls().is_empty());
}

#[test]
fn env_works_with_and_without_modules() {
    let work = Workplace::new();
    let text = fs_err::read_to_string(script("env.sh")).unwrap();
    let wanted = text.replace("MODULES=()", "MODULES=(gcc/13 cuda)");
    assert_ne!(text, wanted);
    let file = work.path().join("env.sh");
    fs_err::write(&file, wanted).unwrap();
    let source = |before: &str| {
        let line = format!("set -eu; {before} source {} && echo done", file.display());
        let output = work.command("bash").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{}", self::text(&output));
        self::text(&output)
    };
    assert!(source("").contains("no `module` command here"));
    let loaded = source("module() { echo \"module $*\"; };");
    assert_eq!(loaded, "module load gcc/13 cuda\ndone\n");
}

#[test]
fn the_cuda_build_is_taken_where_the_job_has_a_gpu() {
    let work = Workplace::new();
    fs_err::create_dir_all(work.path().join("target/cuda/release")).unwrap();
    let chosen = |settings: &[(&str, &str)]| {
        let line = format!("source {}; echo \"${{PIPELINE_BIN-}}\"", script("env.sh").display());
        let mut command = work.command("bash");
        command.args(["-c", &line]).env_remove("PIPELINE_BIN").env("PIPELINE_HOME", work.path());
        command.env_remove("CUDA_VISIBLE_DEVICES").env_remove("DEVICE");
        text(&command.envs(settings.iter().copied()).output().unwrap()).trim().to_owned()
    };
    assert_eq!(chosen(&[]), "");
    assert!(chosen(&[("SLURM_JOB_GPUS", "0")]).ends_with("target/cuda/release"));
    assert_eq!(chosen(&[("SLURM_JOB_GPUS", "0"), ("DEVICE", "cpu")]), "");
    assert_eq!(chosen(&[("SLURM_JOB_GPUS", "0"), ("PIPELINE_BIN", "/own")]), "/own");
}

#[test]
fn stages_run_one_after_the_other_on_one_run() {
    let work = Workplace::new();
    let output = work.command(script("run_local.sh")).args(STAGES).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let calls = work.calls();
    assert_eq!(calls.len(), 4, "{calls:?}");
    let run = calls[0].split_whitespace().find(|word| word.starts_with("run=")).unwrap();
    assert!(run.len() > "run=".len() && calls.iter().all(|call| call.contains(run)), "{calls:?}");
    assert!(calls.iter().all(|call| call.contains("restart=0")));
}

#[test]
fn a_failing_stage_ends_the_run_with_its_exit_code() {
    let work = Workplace::new();
    let mut command = work.command(script("run_local.sh"));
    let output = command.args(STAGES).env("FAKE_EXIT", "02_train_sae:65").output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", text(&output));
    assert_eq!(work.calls().len(), 3);
}

#[test]
fn missing_binaries_and_unknown_stages_are_named() {
    let work = Workplace::new();
    let mut command = work.command(script("run_local.sh"));
    let output = command.arg("train_sae").env("PIPELINE_BIN", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output).contains("/nowhere/02_train_sae"), "{}", text(&output));
    let output = work.command(script("run_local.sh")).arg("train").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let mut command = work.command(script("submit_pipeline.sh"));
    let output = command.args(["--array", "0..3"]).env("PATH", path_with_sbatch(&work)).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("0..3"));
}

/// A `PATH` that holds an `sbatch` which must not be reached.
fn path_with_sbatch(work: &Workplace) -> String {
    let dir = work.path().join("path");
    fs_err::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink("/bin/false", dir.join("sbatch")).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

/// Ctrl-C goes to the terminal's whole foreground group, `kill` to one process; either way the
/// stage is told once, saves, and the script ends with 75 and starts no further stage.
#[test]
fn ctrl_c_stops_cleanly_and_the_same_command_goes_on() {
    use std::os::unix::process::CommandExt;
    for (signal, group) in [(Signal::INT, true), (Signal::TERM, true), (Signal::TERM, false)] {
        let work = Workplace::new();
        let command = || {
            let mut command = work.command(script("run_local.sh"));
            command.args(STAGES).env("FAKE_STEPS", "10").env("RUN_ID", "r");
            command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            command
        };
        let mut child = command().spawn().unwrap();
        assert!(within(10, || work.calls().len() == 1));
        let pid = Pid::from_child(&child);
        if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) }.unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(75), "{signal:?}");
        assert_eq!(work.stops(), ["00_prepare_data signals=1"], "{signal:?}");
        command().status().unwrap();
        let calls = work.calls();
        assert_eq!(calls.len(), 5, "{calls:?}");
        assert!(!calls[1].contains("from=0"), "{}", calls[1]);
    }
}
