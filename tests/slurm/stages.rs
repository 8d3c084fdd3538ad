//! The real stages through `sbatch`: interrupted, queued again, and equal to a run without SLURM.

use std::path::Path;

use super::{cluster::Cluster, script, within};
use crate::workload::{Contents, SAVE, Workload, succeed};

/// The directory of the stages that were built with these tests.
fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_01_save_activations")).parent().unwrap()
}

fn job(output: &str, stage: &str) -> String {
    let line = output.lines().find(|line| line.starts_with(stage)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_requeued_chain_ends_with_the_same_bytes_as_a_run_without_slurm() {
    let Some(cluster) = Cluster::start() else { return };
    let work = Workload::new(6000);
    let mut local = cluster.work.command(script("run_local.sh"));
    local.args(["prepare_data", "save_activations", "train_sae", "top_sentences"]);
    let settings: Vec<_> = work.settings().into_iter().chain([("EPOCHS", "6".into())]).collect();
    cluster.run(local.envs(settings.clone()).env("PIPELINE_BIN", binaries()));
    let expected = work.take();

    let mut chain = cluster.command(script("submit_pipeline.sh"));
    let queued = cluster.run(chain.envs(settings).env("PIPELINE_BIN", binaries()));
    let interrupted =
        [("save_activations", "runs/capture/tokens"), ("train_sae", "runs/training/checkpoints")];
    for (stage, progress) in interrupted {
        let id = job(&queued, stage);
        let folder = work.store().join(progress);
        let begun = || fs_err::read_dir(&folder).is_ok_and(|mut files| files.next().is_some());
        assert!(within(90, begun), "{stage} made no {progress}: {}", cluster.logs());
        cluster.warn(&id);
        cluster.wait(&id, "Restarts", "1");
        cluster.wait(&id, "JobState", "COMPLETED");
    }
    cluster.wait(&job(&queued, "top_sentences"), "JobState", "COMPLETED");
    Contents::read(&work.store()).assert_same(&expected, "after two requeues");
    let logs = work.store().join("logs");
    let log = logs.join(format!("train_sae-{}.out", job(&queued, "train_sae")));
    let log = fs_err::read_to_string(log).unwrap();
    assert!(log.contains("restart 0") && log.contains("restart 1"), "{log}");
}

/// How often an element was queued again.
fn restarts(cluster: &Cluster, element: &str) -> u32 {
    cluster.field(element, "Restarts").parse().unwrap()
}

#[test]
fn a_preempted_array_on_a_node_that_dies_ends_with_the_same_bytes() {
    let Some(cluster) = Cluster::start() else { return };
    let work = Workload::new(45_000);
    for worker in ["0", "1"] {
        succeed(work.stage(SAVE).env("WORKER", worker).env("WORKERS", "2"));
    }
    let expected = work.take();

    let mut array = cluster.command("sbatch");
    array.args(["--parsable", "--array=0-1", "--exclusive=user"]);
    array.arg(script("submit_save_activations.sh")).envs(work.settings());
    // Given as in the run to compare with: `meta.json` tells where each setting came from.
    array.env("WORKERS", "2").env("RAYON_NUM_THREADS", "1");
    let array = cluster.run(array.env("PIPELINE_BIN", binaries()));
    let elements = [0, 1].map(|n| format!("{array}_{n}"));
    let shards = || fs_err::read_dir(work.run("capture").join("tokens")).map_or(0, Iterator::count);
    assert!(within(90, || shards() >= 2), "nothing was captured: {}", cluster.logs());

    // A more important job takes the node.
    let urgent =
        ["-p", "high", "--exclusive", "-o", "/dev/null", "--parsable", "--wrap", "sleep 1"];
    let winner = cluster.run(cluster.command("sbatch").args(urgent));
    cluster.wait(&winner, "JobState", "COMPLETED");
    let before = shards();
    assert!(within(90, || shards() > before), "nothing went on: {}", cluster.logs());
    assert!(elements.iter().all(|e| restarts(&cluster, e) >= 1), "{}", cluster.logs());

    // The node's daemon dies; the captures on it live on beside those that start anew.
    let lost = elements.each_ref().map(|e| restarts(&cluster, e));
    let node = |state: &[&str]| {
        let mut update = cluster.command("scontrol");
        update.args(["update", "nodename=n1"]).args(state);
        update
    };
    cluster.daemon("kill", "n1");
    // The controller would notice by itself after a while; nothing on the node hears of it.
    cluster.run(&mut node(&["state=down", "reason=lost"]));
    let again = || elements.each_ref().map(|e| restarts(&cluster, e));
    // On a fast machine one of them may have ended just before.
    let ended = |e: &String| cluster.field(e, "JobState") == "COMPLETED";
    let requeued = || {
        let of_each = elements.iter().zip(again()).zip(lost);
        of_each.clone().any(|((_, now), before)| now > before)
            && of_each.clone().all(|((e, now), before)| now > before || ended(e))
    };
    assert!(within(90, requeued), "not queued again: {:?}, {}", again(), cluster.logs());
    cluster.daemon("start", "n1");
    // Refused where the daemon's return alone has brought the node back.
    node(&["state=resume"]).output().unwrap();
    for element in &elements {
        cluster.wait(element, "JobState", "COMPLETED");
    }
    Contents::read(&work.store()).assert_same(&expected, "after pre-emption and a lost node");
}

#[test]
fn each_element_of_an_array_trains_its_entry_of_a_sweep() {
    let Some(cluster) = Cluster::start() else { return };
    let work = Workload::new(150);
    work.succeed(SAVE, &[]);
    fs_err::write(work.path("sweep.yaml"), "[{name: few, top_k: 4}, {name: more, top_k: 8}]")
        .unwrap();
    let mut settings = work.settings();
    settings.retain(|(name, _)| *name != "TOP_K");
    let mut array = cluster.command("sbatch");
    array.args(["--parsable", "--wait", "--array=0-1"]).arg(script("submit_train_sae.sh"));
    array.envs(settings).env("SWEEP", work.path("sweep.yaml"));
    cluster.run(array.env("PIPELINE_BIN", binaries()));
    let json = fs_err::read(work.store().join("sweeps/training/sweep.json")).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    for (row, (entry, k)) in rows.iter().zip([("few", "4"), ("more", "8")]) {
        assert_eq!((&row["entry"], &row["settings"]["top_k"]), (&entry.into(), &k.into()));
        assert_eq!(row["state"], "done", "{}", cluster.logs());
        assert!(work.run(&format!("training-{entry}")).join("sae_weights.safetensors").is_file());
    }
    assert_eq!(rows.len(), 2);
}
