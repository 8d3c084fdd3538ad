//! pipeline_status beside a real controller.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{cluster::Cluster, script, within};
use crate::workload::{STATUS, Workload};

/// The workers of the capture; none before the run has begun.
fn workers(cluster: &Cluster, work: &Workload) -> Vec<Value> {
    let mut status = cluster.command(STATUS);
    let output = status.arg("--json").envs(work.settings()).output().unwrap();
    let view: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    view["stages"][0]["workers"].as_array().cloned().unwrap_or_default()
}

#[test]
fn the_states_of_an_array_are_those_of_the_controller() {
    let Some(cluster) = Cluster::start() else { return };
    let work = Workload::new(6000);
    let mut sbatch = cluster.command("sbatch");
    sbatch.args(["--parsable", "--array=0-1%1"]).arg(script("submit_save_activations.sh"));
    let folder = Path::new(STATUS).parent().unwrap();
    let id = cluster.run(sbatch.envs(work.settings()).env("PIPELINE_BIN", folder));
    let states = |expected: [&str; 2]| {
        let rows = workers(&cluster, &work);
        rows.iter().map(|row| row["state"].as_str().unwrap()).eq(expected)
    };
    let seen = || workers(&cluster, &work);
    assert!(within(90, || states(["running", "PENDING"])), "{:#?} {}", seen(), cluster.logs());
    let rows = seen();
    assert_eq!(
        (&rows[0]["job"], &rows[1]["job"]),
        (&format!("{id}_0").into(), &format!("{id}_1").into())
    );
    assert_eq!(rows[1]["reason"], "JobArrayTaskLimit");

    // Without a word: a job whose stage was killed is not queued again.
    let pid = rows[0]["heartbeat"]["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
    kill_process(pid.unwrap(), Signal::KILL).unwrap();
    let lost = || seen().first().is_some_and(|row| row["state"] == "lost");
    assert!(within(90, lost), "{:#?} {}", seen(), cluster.logs());
    assert!(within(90, || seen()[1]["state"] == "done"), "{:#?} {}", seen(), cluster.logs());
}
