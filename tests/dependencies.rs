//! What the default build links, and what it must not.

use std::process::Command;

fn tree(features: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--workspace", "--prefix", "none"]);
    let output = cargo
        .args(["--edges", "normal,build"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_default_build_has_no_trace_of_cuda() {
    let cuda = |tree: &str| tree.lines().any(|line| line.starts_with("cuda"));
    assert!(!cuda(&tree(&[])));
    assert!(cuda(&tree(&["--features", "cuda"])), "the names above no longer match");
}

#[test]
fn nothing_needs_openssl_or_python() {
    let tree = tree(&[]);
    for unwanted in ["openssl-sys ", "native-tls ", "pyo3 "] {
        assert!(!tree.lines().any(|line| line.starts_with(unwanted)), "{unwanted}");
    }
}
