//! A throwaway SLURM cluster on this machine, one per test, started by `tests/slurm/cluster/up`.

use std::{io::Write, path::Path, process::Command};

use super::{Workplace, repository, within};

/// A running cluster with one node of 32 pretended CPUs; taken down when dropped, or by a watcher
/// if this process dies.
pub struct Cluster {
    /// Where jobs are submitted from.
    pub work: Workplace,
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// Starts one, installing SLURM if it is missing; `None`, with a loud line, where that is
    /// impossible and this is not CI.
    pub fn start() -> Option<Self> {
        let work = Workplace::new();
        let home = work.path().join("c");
        let output = work
            .command(tool("up"))
            .args(["--nodes", "1", "--cpus", "32", "--mem", "128000", "--grace", "3"])
            .args(["--kill-wait", "3", "--while-pid", &std::process::id().to_string()])
            .arg(&home)
            .output()
            .unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(std::env::var_os("CI").is_none(), "no cluster: {said}");
            let line = format!("SKIPPED, no SLURM cluster can be started here: {said}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return None;
        }
        let exports = String::from_utf8(output.stdout).unwrap();
        let environment = exports
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Self { work, environment })
    }

    /// A command that talks to this cluster.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.work.command(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end; its standard output.
    pub fn run(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Submits a script of `slurm/`; `options` come before it. Returns the job's id.
    pub fn sbatch(&self, options: &[&str], script: &str, environment: &[(&str, &str)]) -> String {
        let mut command = self.command("sbatch");
        command.arg("--parsable").args(options).arg(super::script(script));
        self.run(command.envs(environment.iter().copied()))
    }

    /// One field of `scontrol show job`, such as `JobState`.
    pub fn field(&self, job: &str, field: &str) -> String {
        let shown = self.run(self.command("scontrol").args(["show", "job", "-o", job]));
        let prefix = format!("{field}=");
        let found = shown.split(' ').find_map(|word| word.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("no {field} in {shown}")).to_owned()
    }

    /// Waits until a field has a value.
    pub fn wait(&self, job: &str, field: &str, value: &str) {
        let reached = within(90, || self.field(job, field) == value);
        assert!(
            reached,
            "{field} of job {job} is {}, not {value}\ncalls: {:#?}\nlogs: {}",
            self.field(job, field),
            self.work.calls(),
            self.logs()
        );
    }

    /// What SLURM does to a job that has `--signal=B:USR1@300` when its time is nearly over.
    pub fn warn(&self, job: &str) {
        self.run(self.command("scancel").args(["--batch", "--signal=USR1", job]));
    }

    /// Kills or starts the daemon of a node, as a failing machine would.
    pub fn daemon(&self, action: &str, node: &str) {
        let home = self.work.path().join("c");
        self.run(self.command(tool("daemon")).arg(home).args([action, node]));
    }

    /// The output of all jobs.
    pub fn logs(&self) -> String {
        let read = |dir: &Path| -> Vec<String> {
            let entries = fs_err::read_dir(dir).into_iter().flatten().flatten();
            let files = entries.map(|e| e.path()).filter(|p| p.extension() == Some("out".as_ref()));
            files.map(|p| fs_err::read_to_string(p).unwrap()).collect()
        };
        [read(self.work.path()), read(&self.work.store().join("logs"))].concat().concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = Command::new(tool("down")).arg(self.work.path().join("c")).status();
        assert!(down.is_ok() || std::thread::panicking());
    }
}

fn tool(name: &str) -> std::path::PathBuf {
    repository().join("tests/slurm/cluster").join(name)
}
