//! Python environments of the tests that need one.

use std::{io::Write, process::Command};

/// The Python with the packages of `tests/<name>/requirements.txt`; `None`, with a loud line, where
/// they cannot be fetched. CI does not go without.
pub fn python(name: &str) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/venv.sh");
    let output = Command::new(script).arg(name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(69) && std::env::var_os("CI").is_none() {
        let line = format!("SKIPPED, the Python packages cannot be fetched: {said}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}
