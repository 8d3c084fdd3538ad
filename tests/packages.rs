//! Packages of other languages that some tests need.

use std::{io::Write, path::PathBuf, process::Command};

/// The Python with the packages of `tests/<name>/requirements.txt`.
pub fn python(name: &str) -> Option<String> {
    installed("venv.sh", name)
}

/// The directory with the `node_modules` of `tests/<name>/package-lock.json`.
pub fn node(name: &str) -> Option<PathBuf> {
    installed("npm.sh", name).map(PathBuf::from)
}

/// What a script of `tests/` prints once its packages are there; `None`, with a loud line, where they
/// cannot be fetched. CI does not go without.
fn installed(script: &str, name: &str) -> Option<String> {
    let tests = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"));
    let output = Command::new(tests.join(script)).arg(name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(69) && std::env::var_os("CI").is_none() {
        let line = format!("SKIPPED, the packages cannot be fetched: {said}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}
