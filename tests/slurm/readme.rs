//! The README's commands, as they stand, on a cluster.

use std::path::Path;

use super::{cluster::Cluster, repository, within};

/// The README's shell blocks, but for the one that runs this test.
fn commands() -> String {
    let readme = fs_err::read_to_string(repository().join("README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let (own, others): (Vec<&str>, Vec<&str>) = blocks.partition(|b| b.trim() == "tests/run.sh");
    assert_eq!(own.len(), 1, "the README says how to run the tests");
    assert!(others.len() >= 4, "{others:?}");
    others.concat()
}

fn reports(store: &Path) -> Vec<String> {
    let runs = fs_err::read_dir(store.join("runs")).unwrap().flatten();
    let with_report = runs.filter(|run| run.path().join("top_sentences/report.html").is_file());
    with_report.map(|run| run.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_readme_does_what_it_says() {
    let Some(cluster) = Cluster::start() else { return };
    let logs = cluster.work.path().join("%x-%j.out");
    let mut shell = cluster.command("bash");
    shell.args(["-euo", "pipefail", "-c", &commands()]);
    shell.env_remove("PIPELINE_HOME").env_remove("PIPELINE_BIN").env("SBATCH_OUTPUT", logs);
    let printed = cluster.run(shell.current_dir(repository()));
    assert!(printed.contains("recommended") && printed.contains("GFLOP/s"), "{printed}");
    let done = within(120, || cluster.run(cluster.command("squeue").arg("--noheader")).is_empty());
    assert!(done, "{}", cluster.logs());
    let found = reports(&cluster.work.store());
    assert_eq!(found.len(), 3, "{found:?}: {}", cluster.logs());
    for run in ["demo-sae", "mine-k16"] {
        assert!(found.iter().any(|f| f == run), "{found:?}: {}", cluster.logs());
    }
}
