//! convert_sae: SAEs of several projects, saved by those projects, through every format.

mod refusals;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pipeline_common::sae::{
    Sae,
    formats::{self, Expected, Format, Loaded},
};

use super::workload::{CONVERT, SAVE, TRAIN, Workload, succeed};

/// k of those whose files do not hold it.
const K: usize = 3;

/// What f32 arithmetic in another order changes.
const ROUNDING: f32 = 1e-5;

/// The folder of SAEs; `tests/golden/scripts/make_saes.py` made it.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/saes").join(name)
}

/// The file or directory to read of an SAE in the folder.
fn source(name: &str) -> PathBuf {
    let folder = golden(name);
    let files = ["1.pt", "sae.pt", "params.npz"].map(|file| folder.join(file));
    files.into_iter().find(|file| file.exists()).unwrap_or(folder)
}

fn top_k(name: &str) -> Option<usize> {
    (name == "saint").then_some(K)
}

fn load(path: &Path, top_k: Option<usize>) -> Loaded {
    formats::read(path, Expected { sae_from_format: None, top_k }).unwrap()
}

/// One of the tensors beside an SAE: x, latents, or reconstruction.
fn expected(name: &str, tensor: &str) -> Vec<f32> {
    let bytes = fs_err::read(golden(name).join("check.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap().data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Latents and reconstruction of an SAE are those that its own project computes.
fn computes_the_same(sae: &Sae, name: &str, tolerance: f32) {
    let x = expected(name, "x");
    let sparse = sae.encode(&x);
    let mut latents = vec![0.0; sparse.rows() * sae.params.d_sae];
    for (row, dense) in latents.chunks_exact_mut(sae.params.d_sae).enumerate() {
        let (index, value) = sparse.row(row);
        index.iter().zip(value).for_each(|(i, v)| dense[*i as usize] = *v);
    }
    close(&latents, &expected(name, "latents"), &format!("latents of {name}"), tolerance);
    let (found, expected) = (sae.reconstruct(&x, &sparse), expected(name, "reconstruction"));
    close(&found, &expected, &format!("reconstruction of {name}"), tolerance);
}

fn close(found: &[f32], expected: &[f32], what: &str, tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what} at {at}: {a}, expected {b}");
    }
}

fn convert(from: &Path, to: &Path, format: &str) -> Command {
    let mut command = Command::new(CONVERT);
    command.env_clear().args(["--sae-format", format]);
    command.arg("--sae-from").arg(from).arg("--sae-to").arg(to);
    command
}

fn said(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The folder's SAEs that can be read, and what they are.
const ALL: [(&str, Format); 20] = [
    ("saelens_standard", Format::SaeLens),
    ("saelens_topk_rescaled", Format::SaeLens),
    ("saelens_topk_layer_norm", Format::SaeLens),
    ("saelens_jumprelu", Format::SaeLens),
    ("saelens_gated", Format::SaeLens),
    ("saelens_batchtopk_training", Format::SaeLens),
    ("saelens_before_6", Format::SaeLens),
    ("sparsify_topk", Format::Sparsify),
    ("sparsify_skip_transcoder", Format::Sparsify),
    ("dictionary_learning_standard", Format::DictionaryLearning),
    ("dictionary_learning_new", Format::DictionaryLearning),
    ("dictionary_learning_topk", Format::DictionaryLearning),
    ("dictionary_learning_batchtopk", Format::DictionaryLearning),
    ("dictionary_learning_matryoshka", Format::DictionaryLearning),
    ("dictionary_learning_jumprelu", Format::DictionaryLearning),
    ("dictionary_learning_gated", Format::DictionaryLearning),
    ("gemma_scope", Format::GemmaScope),
    ("gemma_scope_compressed", Format::GemmaScope),
    ("openai_topk", Format::OpenAi),
    ("openai_relu_half", Format::OpenAi),
];

#[test]
fn each_format_is_recognised_and_computes_what_its_own_project_does() {
    for (name, format) in ALL.into_iter().chain([("saint", Format::Saint)]) {
        let loaded = load(&source(name), top_k(name));
        assert_eq!(loaded.format, format, "{name}");
        computes_the_same(&loaded.sae, name, ROUNDING);
    }
}

/// What each target refuses, by a word of the SAE's name.
fn is_held(name: &str, format: &str) -> bool {
    let top_k = ["topk_rescaled", "before_6", "sparsify", "dictionary_learning_topk"];
    let standardised = ["layer_norm", "openai_topk", "saint"];
    let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match format {
        "saelens" => true,
        "sparsify" => is(&top_k),
        _ => !is(&standardised) && !name.contains("transcoder"),
    }
}

#[test]
fn what_is_written_is_read_again_to_the_same_numbers_and_the_rest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, _) in ALL.into_iter().chain([("saint", Format::Saint)]) {
        for format in ["saelens", "sparsify", "dictionary_learning"] {
            let to = dir.path().join(format!("{name}-{format}"));
            let mut command = convert(&source(name), &to, format);
            if top_k(name).is_some() {
                command.env("TOP_K", K.to_string());
            }
            if is_held(name, format) {
                let (table, _) = succeed(&mut command);
                for words in ["max |Δ|", "latents", "reconstructions", "active sets"] {
                    assert!(table.contains(words), "{table}");
                }
                // SAELens adds ten times as much to a row's deviation as SAINT.
                let tolerance = if name == "saint" { 1e-4 } else { ROUNDING };
                computes_the_same(&load(&to, None).sae, name, tolerance);
            } else {
                let output = command.output().unwrap();
                let said = said(&output);
                assert_eq!(output.status.code(), Some(65), "{name} {format}: {said}");
                assert!(said.contains(&format!("{format} cannot hold")), "{said}");
                assert_eq!(command.arg("--check").output().unwrap().status.code(), Some(65));
                assert!(said.contains("hint:") && !to.exists(), "{said}");
            }
        }
    }
    let left: Vec<String> = fs_err::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn notes_say_what_a_conversion_changes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, format, words) in [
        ("dictionary_learning_batchtopk", "saelens", "running threshold 0.4"),
        ("dictionary_learning_new", "saelens", "input       as it is"),
        ("saelens_standard", "dictionary_learning", "normalize_decoder=False"),
        ("saint", "saelens", "SAELens adds 1e-5"),
        ("openai_topk", "saelens", "each row is standardised"),
        ("openai_relu_half", "saelens", "stored as F16"),
    ] {
        let to = dir.path().join(name);
        let mut command = convert(&source(name), &to, format);
        if top_k(name).is_some() {
            command.args(["--top-k", "3"]);
        }
        let (table, _) = succeed(&mut command);
        assert!(table.contains(words), "{words}: {table}");
    }
}

#[test]
fn names_of_model_and_hook_go_along() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    succeed(&mut convert(&source("saelens_before_6"), &a, "dictionary_learning"));
    let config = fs_err::read_to_string(a.join("config.json")).unwrap();
    assert!(config.contains(r#""submodule_name": "blocks.1.hook_resid_pre""#), "{config}");
    succeed(&mut convert(&a, &b, "sparsify"));
    succeed(&mut convert(&b, &c, "saelens"));
    let metadata = load(&c, None).about.metadata;
    assert_eq!(metadata["model_name"], "gpt2-small");
    assert_eq!(metadata["hook_layer"], 1);
}

/// The training of this project, on the rows of its own capture.
#[test]
fn a_training_goes_to_sparsify_and_back() {
    let work = Workload::new(60);
    work.succeed(SAVE, &[]);
    work.succeed(TRAIN, &[]);
    let (there, back) = (work.path("there"), work.path("back"));
    let convert = |from: &Path, to: &Path, format: &str| {
        let mut command = work.stage(CONVERT);
        command.env("SAE_FROM", from).env("SAE_TO", to).env("SAE_FORMAT", format);
        command
    };
    let training = work.run("training");
    let (table, _) = succeed(convert(&training, &there, "sparsify").arg("--check"));
    assert!(table.contains("topk, k = 4, d_in 64, d_sae 256") && !there.exists(), "{table}");
    let (table, log) = succeed(&mut convert(&training, &there, "sparsify"));
    assert!(table.contains("of hook `model.layers.1.") && table.contains("0 of "), "{table}");
    assert!(table.contains("firing frequencies"), "{table}");
    assert!(log.contains("is written"), "{log}");
    succeed(&mut convert(&there, &back, "saelens"));
    assert_eq!(load(&back, None).sae, load(&training, None).sae);
}

#[test]
fn a_target_that_exists_is_never_changed() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs_err::create_dir(&to).unwrap();
    let from = source("gemma_scope");
    succeed(&mut convert(&from, &to, "saelens"));
    let again = succeed(&mut convert(&from, &to, "saelens"));
    assert!(again.1.contains("is written"), "{}", again.1);
    let output = convert(&from, &to, "dictionary_learning").output().unwrap();
    let refused = said(&output);
    assert_eq!(output.status.code(), Some(2), "{refused}");
    assert!(refused.contains("holds something else") && refused.contains("hint:"), "{refused}");
    computes_the_same(&load(&to, None).sae, "gemma_scope", ROUNDING);
    let file = to.join("cfg.json");
    let output = convert(&from, &file, "saelens").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
}
