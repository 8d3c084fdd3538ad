//! The submit scripts under a real scheduler, with stand-ins for the stages.

use std::os::unix::fs::PermissionsExt;

use super::{cluster::Cluster, script, within};

/// The value after `name` in what `submit_pipeline.sh` prints.
fn told<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
    line.split_whitespace().nth(1).unwrap()
}

#[test]
fn an_interrupted_job_is_queued_again_and_goes_on() {
    let Some(cluster) = Cluster::start() else { return };
    let steps = [("FAKE_STEPS", "30")];
    let settings = [("FAKE_STEPS", "30"), ("RUN_ID", "r"), ("SAE_RUN_ID", "s")];
    let job = cluster.sbatch(&[], "submit_train_sae.sh", &settings);
    assert!(within(30, || cluster.work.calls().len() == 1));
    cluster.warn(&job);
    cluster.wait(&job, "Restarts", "1");
    cluster.wait(&job, "JobState", "COMPLETED");
    let calls = cluster.work.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[0].contains("run=r sae=s ") && calls[0].contains("from=0 restart=0"));
    assert!(calls[1].contains("run=r sae=s ") && calls[1].contains("restart=1"));
    assert!(!calls[1].contains("from=0"), "it began anew: {}", calls[1]);
    assert_eq!(cluster.work.stops(), ["02_train_sae signals=1"], "one signal, not two");
    let log = cluster.logs();
    assert!(log.contains("restart 0") && log.contains("restart 1"), "log was truncated: {log}");

    // A preempted job is stopped by SLURM itself and must not count as complete.
    let job = cluster.sbatch(
        &["--exclusive"],
        "submit_save_activations.sh",
        &[("FAKE_STEPS", "30"), ("RUN_ID", "p")],
    );
    assert!(within(30, || cluster.work.calls().len() == 3));
    let urgent =
        ["-p", "high", "--exclusive", "-o", "/dev/null", "--parsable", "--wrap", "sleep 1"];
    let winner = cluster.run(cluster.command("sbatch").args(urgent).envs(steps));
    cluster.wait(&winner, "JobState", "COMPLETED");
    cluster.wait(&job, "JobState", "COMPLETED");
    let last = cluster.work.calls().pop().unwrap();
    assert!(last.contains("restart=1") && !last.contains("from=0"), "{last}");
}

#[test]
fn only_the_interrupted_element_of_an_array_is_queued_again() {
    let Some(cluster) = Cluster::start() else { return };
    let settings = [("FAKE_STEPS", "40"), ("RUN_ID", "r")];
    let array = cluster.sbatch(&["--array=0-2"], "submit_save_activations.sh", &settings);
    assert!(within(30, || cluster.work.calls().len() == 3));
    let element = |n: usize| format!("{array}_{n}");
    // The element that carries the array's own id is the one where a short name hits all.
    let own = (0..3).find(|n| cluster.field(&element(*n), "JobId") == array).unwrap();
    cluster.warn(&element(own));
    cluster.wait(&element(own), "Restarts", "1");
    for n in 0..3 {
        cluster.wait(&element(n), "JobState", "COMPLETED");
        assert_eq!(cluster.field(&element(n), "Restarts"), usize::from(n == own).to_string());
    }
    assert_eq!(cluster.work.calls().len(), 4);
}

#[test]
fn failed_cancelled_and_tired_jobs_are_not_queued_again() {
    let Some(cluster) = Cluster::start() else { return };
    let failing = [("FAKE_EXIT", "02_train_sae:65"), ("RUN_ID", "failing")];
    let failing = cluster.sbatch(&[], "submit_train_sae.sh", &failing);
    let tired = [("FAKE_EXIT", "03_top_sentences:75"), ("RUN_ID", "tired"), ("MAX_REQUEUES", "1")];
    let tired = cluster.sbatch(&[], "submit_top_sentences.sh", &tired);
    let long = [("FAKE_STEPS", "200"), ("RUN_ID", "long")];
    let cancelled = cluster.sbatch(&[], "submit_save_activations.sh", &long);
    assert!(within(30, || cluster.work.calls().iter().any(|call| call.contains("run=long"))));
    cluster.run(cluster.command("scancel").arg(&cancelled));

    cluster.wait(&failing, "JobState", "FAILED");
    assert_eq!(cluster.field(&failing, "ExitCode"), "65:0");
    assert_eq!(cluster.field(&failing, "Restarts"), "0");
    cluster.wait(&tired, "JobState", "FAILED");
    assert_eq!(cluster.field(&tired, "ExitCode"), "75:0");
    assert_eq!(cluster.field(&tired, "Restarts"), "1");
    cluster.wait(&cancelled, "JobState", "CANCELLED");
    assert!(within(10, || cluster.work.stops().len() == 1), "it had time to save");
    std::thread::sleep(std::time::Duration::from_secs(7)); // longer than a requeued job waits
    assert_eq!(cluster.field(&cancelled, "JobState"), "CANCELLED");
    assert!(cluster.logs().contains("not queued again"));
}

#[test]
fn a_pipeline_is_a_chain_with_its_own_runs() {
    let Some(cluster) = Cluster::start() else { return };
    let chain = |arguments: &[&str]| {
        cluster.run(cluster.command(script("submit_pipeline.sh")).args(arguments))
    };
    let first = chain(&["--array", "0-1"]);
    let second = chain(&["--", "--comment=second"]);
    let ends: Vec<&str> = [&first, &second].map(|out| told(out, "top_sentences")).into();
    assert_eq!(cluster.field(ends[1], "Comment"), "second");
    for end in ends {
        cluster.wait(end, "JobState", "COMPLETED");
    }
    let calls = cluster.work.calls();
    for (output, workers) in [(&first, 2), (&second, 1)] {
        let (run, sae) = (told(output, "RUN_ID"), told(output, "SAE_RUN_ID"));
        let mine: Vec<_> = calls.iter().filter(|c| c.contains(&format!("run={run} "))).collect();
        assert_eq!(mine.len(), workers + 3, "{calls:?}");
        assert!(mine.iter().all(|call| call.contains(&format!("sae={sae} "))), "{mine:?}");
        assert!(mine[0].starts_with("00_prepare_data"), "{mine:?}");
        assert!(mine[workers].starts_with("01_save_activations"), "{mine:?}");
        assert!(mine[workers + 1].starts_with("02_train_sae"), "{mine:?}");
        assert!(mine[workers + 2].starts_with("03_top_sentences"), "{mine:?}");
        assert!(workers == 1 || mine[..3].iter().all(|c| c.contains("workers=2")), "{mine:?}");
    }
    assert_ne!(told(&first, "RUN_ID"), told(&second, "RUN_ID"));
    assert!(cluster.work.store().join("logs").is_dir());
}

#[test]
fn a_pipeline_stops_at_the_stage_that_fails() {
    let Some(cluster) = Cluster::start() else { return };
    let mut command = cluster.command(script("submit_pipeline.sh"));
    let output = cluster.run(command.env("FAKE_EXIT", "02_train_sae:65").env("RUN_ID", "r"));
    assert_eq!((told(&output, "RUN_ID"), told(&output, "SAE_RUN_ID")), ("r", "r-sae"));
    cluster.wait(told(&output, "train_sae"), "JobState", "FAILED");
    cluster.wait(told(&output, "top_sentences"), "JobState", "CANCELLED");
    assert_eq!(cluster.work.calls().len(), 3);
}

#[test]
fn data_can_be_prepared_before_anything_is_queued() {
    let Some(cluster) = Cluster::start() else { return };
    let mut command = cluster.command(script("submit_pipeline.sh"));
    let output = cluster.run(command.arg("--prepare-here"));
    assert_eq!(told(&output, "prepare_data"), "done");
    let calls = cluster.work.calls();
    assert!(calls[0].starts_with("00_prepare_data"), "{calls:?}");
    cluster.wait(told(&output, "top_sentences"), "JobState", "COMPLETED");
    assert_eq!(cluster.work.calls().len(), 4);

    let mut command = cluster.command(script("submit_pipeline.sh"));
    command.arg("--prepare-here").env("FAKE_EXIT", "00_prepare_data:69");
    assert_eq!(command.output().unwrap().status.code(), Some(69));
    assert!(cluster.run(cluster.command("squeue").arg("--noheader")).is_empty(), "queued anyway");
}

#[test]
fn a_job_that_cannot_find_the_repository_says_so() {
    let Some(cluster) = Cluster::start() else { return };
    let mut command = cluster.command("sbatch");
    command.arg("--parsable").arg(script("submit_train_sae.sh")).env_remove("PIPELINE_HOME");
    let job = cluster.run(&mut command);
    cluster.wait(&job, "JobState", "FAILED");
    assert_eq!(cluster.field(&job, "ExitCode"), "2:0");
    let log = cluster.logs();
    assert!(log.contains("set PIPELINE_HOME"), "{log}");
}

#[test]
fn a_pipeline_with_a_sweep_leaves_the_choice_of_what_to_read() {
    let Some(cluster) = Cluster::start() else { return };
    let mut command = cluster.command(script("submit_pipeline.sh"));
    let output = cluster.run(command.envs([("SWEEP", "sweep.yaml"), ("SAE_RUN_ID", "s")]));
    assert!(output.contains("SAE_RUN_ID=s-NAME sbatch slurm/submit_top_sentences.sh"), "{output}");
    assert!(told(&output, "result").ends_with("/sweeps/s"), "{output}");
    cluster.wait(told(&output, "train_sae"), "JobState", "COMPLETED");
    let calls = cluster.work.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(calls[2].starts_with("02_train_sae"), "{calls:?}");
}

#[test]
fn an_explorers_log_is_its_owners_and_it_is_not_queued_again() {
    let Some(cluster) = Cluster::start() else { return };
    let job = cluster.sbatch(&[], "submit_explore.sh", &[("FAKE_STEPS", "200")]);
    assert!(within(30, || cluster.work.calls().len() == 1));
    let port = 12_000 + job.parse::<usize>().unwrap() % 20_000;
    let calls = cluster.work.calls();
    assert!(calls[0].contains(&format!("port={port} ")), "{calls:?}");
    let mode = fs_err::metadata(cluster.field(&job, "StdOut")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the token is in the log");
    cluster.warn(&job);
    assert!(within(30, || cluster.field(&job, "JobState") != "RUNNING"));
    assert_eq!(cluster.field(&job, "Restarts"), "0");
}

#[test]
fn names_are_asked_for_until_they_are_there() {
    let Some(cluster) = Cluster::start() else { return };
    let actions = |run: &str| -> Vec<String> {
        let calls = cluster.work.calls().into_iter().filter(|c| c.contains(&format!("run={run} ")));
        calls.map(|call| call.split_once("args=").unwrap().1.to_owned()).collect()
    };
    let job = cluster.sbatch(&["--array=0-1"], "submit_name_latents.sh", &[("RUN_ID", "all")]);
    let element = |n: usize| format!("{job}_{n}");
    (0..2).for_each(|n| cluster.wait(&element(n), "JobState", "COMPLETED"));
    let all = ["retrieve", "send", "retrieve", "send", "retrieve", "parse", "score"];
    let mut twice = [all, all].concat();
    twice.sort_unstable();
    let mut found = actions("all");
    found.sort_unstable();
    assert_eq!(found, twice);

    let mut one = cluster.command("sbatch");
    one.args(["--parsable", "-o", "/dev/null"]).arg(script("submit_name_latents.sh"));
    let one = cluster.run(one.args(["retrieve", "--latents", "3"]).env("RUN_ID", "one"));
    cluster.wait(&one, "JobState", "COMPLETED");
    assert_eq!(actions("one"), ["retrieve --latents 3"]);

    let settings = [("RUN_ID", "poll"), ("FAKE_EXIT", "04_name_latents:75"), ("MAX_REQUEUES", "1")];
    let job = cluster.sbatch(&[], "submit_name_latents.sh", &settings);
    cluster.wait(&job, "JobState", "FAILED");
    assert_eq!(cluster.field(&job, "Restarts"), "1");
    assert_eq!(
        actions("poll"),
        ["retrieve", "retrieve"],
        "each start begins with what may be under way"
    );
}
