//! The scripts of `slurm/` on a real one-machine cluster, and without SLURM.
//!
//! `scripts` drives them with stand-ins for the stages, `local` does so without a cluster, `stages`
//! runs the real ones.

mod cluster;
mod local;
mod readme;
mod scripts;
mod stages;
mod status;

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// A directory to work in, with a store and the stand-ins as `PIPELINE_BIN`.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Self {
        // Unix sockets of the cluster need a short path, whatever TMPDIR is.
        let dir = tempfile::Builder::new().prefix("slurm-").tempdir_in("/tmp").unwrap();
        let bin = dir.path().join("bin");
        fs_err::create_dir(&bin).unwrap();
        let stages = [
            "00_prepare_data",
            "01_save_activations",
            "02_train_sae",
            "03_top_sentences",
            "04_name_latents",
            "05_explore",
        ];
        for stage in stages {
            symlink(repository().join("tests/slurm/fake_stage"), bin.join(stage)).unwrap();
        }
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// A command that sees none of the caller's cluster or pipeline settings.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let foreign = ["SLURM_", "SBATCH_", "SRUN_", "PIPELINE_"];
            if foreign.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        for name in ["RUN_ID", "SAE_RUN_ID", "WORKERS", "CONFIG", "SCRATCH"] {
            command.env_remove(name);
        }
        command
            .current_dir(self.path())
            .env("PIPELINE_HOME", repository())
            .env("PIPELINE_BIN", self.path().join("bin"))
            .env("STORE_DIR", self.store());
        command
    }

    /// What the stand-ins wrote about their starts, one line each; empty before the first.
    fn calls(&self) -> Vec<String> {
        lines(&self.store().join("calls"))
    }

    /// What the stand-ins wrote when they were asked to stop.
    fn stops(&self) -> Vec<String> {
        lines(&self.store().join("stops"))
    }
}

fn lines(file: &Path) -> Vec<String> {
    fs_err::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn script(name: &str) -> PathBuf {
    repository().join("slurm").join(name)
}

/// Looks every tenth of a second until `true` or the seconds are over.
fn within(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        if condition() {
            return true;
        }
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
