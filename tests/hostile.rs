//! Damaged, missing and impossible input: one clear error, the right exit code, nothing lost.

mod disk;
mod input;
mod model;
mod store;

use std::{path::Path, process::Command};

use super::workload::{SAVE, TRAIN, Workload};

/// What a stage must say when it refuses.
pub struct Refusal<'a> {
    pub code: i32,
    /// All of them in the line that begins with `error:`.
    pub error: &'a [&'a str],
    /// In the line that begins with `hint:`; an empty one where there is nothing to do.
    pub hint: &'a str,
}

/// Runs a stage that must refuse in one line, and say nothing else that matters.
pub fn refused(command: &mut Command, expected: &Refusal<'_>) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let context = format!("{command:?}\n{said}");
    assert_eq!(output.status.code(), Some(expected.code), "{context}");
    assert!(!said.contains("panicked"), "{context}");
    let named = said.lines().filter(|l| l.to_lowercase().contains("error:"));
    let lines: Vec<&str> = named.collect();
    let [line] = lines[..] else { panic!("not one error line: {context}") };
    assert!(line.starts_with("error: "), "{context}");
    for words in expected.error {
        assert!(line.contains(words), "the error lacks `{words}`: {context}");
    }
    let hints: Vec<&str> = said.lines().filter(|l| l.starts_with("hint: ")).collect();
    if expected.hint.is_empty() {
        assert!(hints.is_empty(), "a hint nobody expected: {context}");
    } else {
        assert_eq!(hints.len(), 1, "{context}");
        assert!(hints[0].contains(expected.hint), "the hint lacks `{}`: {context}", expected.hint);
    }
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{context}");
}

/// A job that went through stages 01 and 02.
fn trained(documents: usize) -> Workload {
    let work = Workload::new(documents);
    work.succeed(SAVE, &[]);
    work.succeed(TRAIN, &[]);
    work
}

/// Changes a file's bytes, does something, and puts the file back.
fn damaged(path: &Path, change: impl Fn(&mut Vec<u8>), then: impl FnOnce()) {
    let good = fs_err::read(path).unwrap();
    let mut bytes = good.clone();
    change(&mut bytes);
    assert_ne!(bytes, good, "{} is as it was", path.display());
    fs_err::write(path, bytes).unwrap();
    then();
    fs_err::write(path, good).unwrap();
}

/// Replaces text that must be there.
fn replaced(bytes: &mut Vec<u8>, from: &str, to: &str) {
    *bytes = String::from_utf8(std::mem::take(bytes)).unwrap().replace(from, to).into_bytes();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The files of a directory whose name ends with `suffix`, in order.
fn files(dir: &Path, suffix: &str) -> Vec<std::path::PathBuf> {
    let entries = fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<_> = entries.filter(|p| text(p).ends_with(suffix)).collect();
    found.sort();
    found
}

/// The directory of the activations of the run `capture`.
const HOOK_DIR: &str = "llamaforcausallm_model_layers_1_post_attention_layernorm_in";

/// Nothing was published, and what the manifest says is committed is there and whole.
fn committed_and_unpublished(store: &Path) -> usize {
    assert!(!store.join("run_id.txt").exists(), "a failed capture was published");
    let run = store.join("runs/capture");
    let lines = pipeline_common::shard::manifest::read(&run.join("workers/0.jsonl")).unwrap();
    for file in lines.iter().flat_map(|l| l.hooks.iter().map(|h| &h.file).chain([&l.tokens])) {
        let bytes = fs_err::read(run.join(&file.path)).unwrap();
        assert_eq!(blake3::hash(&bytes).to_hex().to_string(), file.blake3, "{}", file.path);
    }
    lines.len()
}
