//! Files that are damaged, foreign, or hold what cannot be converted: refused with code 65, by name.

use std::path::Path;

use half::f16;
use pipeline_common::{
    sae::formats::{self, Expected},
    stage::Classify,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{convert, golden, said, source};

/// A copy of one of the folder's SAEs.
fn copy(name: &str, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// What the library says of an SAE, which it must refuse as invalid input.
fn refusal(path: &Path, expected: Expected) -> String {
    let Err(error) = formats::read(path, expected) else {
        panic!("`{}` was read", path.display());
    };
    assert_eq!(error.kind().exit_code(), 65, "{error}");
    format!("{error} hint: {}", error.hint().unwrap_or_default())
}

fn contains(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "`{words}` is missing from: {text}");
    }
}

/// An SAE of the folder, what is replaced in its configuration, and what the refusal names.
type Change = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CONFIGURATIONS: [Change; 18] = [
    (
        "saelens_standard",
        r#""normalize_activations": "none""#,
        r#""normalize_activations": "constant_norm_rescale""#,
        &[
            "cfg.json",
            "`normalize_activations` is `constant_norm_rescale`",
            "`layer_norm`",
            "hint: rows",
        ],
    ),
    (
        "saelens_standard",
        r#""reshape_activations": "none""#,
        r#""reshape_activations": "hook_z""#,
        &["`reshape_activations` is `hook_z`, expected `none`", "heads"],
    ),
    ("saelens_before_6", "hook_resid_pre", "attn.hook_z", &["`reshape_activations` is `hook_z`"]),
    ("saelens_before_6", r#""topk""#, r#""gelu""#, &["`activation_fn` is `gelu`"]),
    (
        "saelens_before_6",
        r#""finetuning_scaling_factor": false"#,
        r#""finetuning_scaling_factor": true"#,
        &["`finetuning_scaling_factor` is `true`"],
    ),
    (
        "saelens_standard",
        r#""standard""#,
        r#""temporal""#,
        &["`architecture` is `temporal`", "gated"],
    ),
    ("saelens_topk_rescaled", r#""k": 3"#, r#""k": 11"#, &["`k` is `11`, expected 1 to 10"]),
    ("saelens_topk_rescaled", r#""k": 3"#, r#""k": "three""#, &["cfg.json", "`k`", "three"]),
    (
        "saelens_standard",
        r#""d_sae": 10"#,
        r#""d_sae": 12"#,
        &["sae_weights", "`W_enc`", "[6, 10]", "[6, 12]"],
    ),
    ("saelens_standard", r#""d_in": 6"#, r#""d_in": 99999999999"#, &["`W_enc`"]),
    (
        "sparsify_topk",
        r#""activation": "topk""#,
        r#""activation": "groupmax""#,
        &["cfg.json", "`activation` is `groupmax`, expected `topk`", "hint:"],
    ),
    ("sparsify_topk", r#""k": 3"#, r#""k": 0"#, &["`k` is `0`"]),
    (
        "sparsify_topk",
        r#""expansion_factor": 2"#,
        r#""expansion_factor": 3"#,
        &["`encoder.weight`", "[15, 5]"],
    ),
    (
        "sparsify_skip_transcoder",
        r#""skip_connection": true"#,
        r#""skip_connection": false"#,
        &["`W_skip` is in the file"],
    ),
    (
        "dictionary_learning_topk",
        "AutoEncoderTopK",
        "CrossCoder",
        &["config.json", "`dict_class` is `CrossCoder`"],
    ),
    (
        "dictionary_learning_topk",
        r#""dict_size": 10"#,
        r#""dict_size": 20"#,
        &["`dict_size` is `20`", "ae.pt"],
    ),
    (
        "dictionary_learning_gated",
        "GatedAutoEncoder",
        "AutoEncoder",
        &["ae.pt", "`encoder.bias` is missing"],
    ),
    (
        "dictionary_learning_topk",
        "trainer",
        "trainee",
        &["the class", "dict_class", "same tensors"],
    ),
];

#[test]
fn configurations_that_would_change_the_result() {
    for (name, from, to, words) in CONFIGURATIONS {
        let dir = tempfile::tempdir().unwrap();
        copy(name, dir.path());
        let mut changed = false;
        for file in ["cfg.json", "config.json"].map(|file| dir.path().join(file)) {
            if file.exists() {
                let text = fs_err::read_to_string(&file).unwrap();
                changed |= text.contains(from);
                fs_err::write(&file, text.replace(from, to)).unwrap();
            }
        }
        assert!(changed, "{name} has no {from}");
        contains(&refusal(dir.path(), Expected::default()), words);
    }
}

#[test]
fn files_that_do_not_say_enough() {
    let saint = source("saint");
    let without_k = refusal(&saint, Expected::default());
    contains(&without_k, &["sae.pt", "k is not in the file", "hint: set TOP_K"]);
    let other_k = Expected { sae_from_format: None, top_k: Some(5) };
    contains(&refusal(&golden("sparsify_topk"), other_k), &["`k` is 3, expected 5, which TOP_K"]);
    contains(&refusal(&saint, Expected { sae_from_format: None, top_k: Some(11) }), &["`k` is 11"]);
    contains(&refusal(&source("before_1_6"), Expected::default()), &["before 1.6", "torch.save"]);
    let foreign = Expected { sae_from_format: Some(formats::Format::OpenAi), top_k: None };
    contains(&refusal(&saint, foreign), &["`latent_bias` is missing", "encoder.bias"]);
    let empty = tempfile::tempdir().unwrap();
    contains(&refusal(empty.path(), Expected::default()), &["format is none", "params.npz"]);
    let alone = empty.path().join("ae.pt");
    fs_err::copy(golden("dictionary_learning_topk").join("ae.pt"), &alone).unwrap();
    contains(&refusal(&alone, Expected::default()), &["config.json", "same tensors"]);
}

type Edited<'a> = (Dtype, Vec<usize>, Vec<u8>);

/// Weights of a SAELens SAE, one tensor replaced.
fn with_tensor(name: &str, edit: impl FnOnce(Edited<'_>) -> Option<Edited<'_>>) -> String {
    let dir = tempfile::tempdir().unwrap();
    copy("saelens_jumprelu", dir.path());
    let path = dir.path().join("sae_weights.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Edited<'_>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    let at = all.iter().position(|(n, _)| n == name);
    let old = at.map_or((Dtype::F32, vec![1], vec![0; 4]), |at| all.remove(at).1);
    if let Some(new) = edit(old) {
        all.push((name.to_owned(), new));
    }
    let views = all.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).unwrap();
    match formats::read(dir.path(), Expected::default()) {
        Ok(loaded) => loaded.notes.join(" "),
        Err(e) => format!("refused: {e}"),
    }
}

#[test]
fn tensors_of_other_types_shapes_and_names() {
    contains(&with_tensor("b_enc", |_| None), &["refused", "`b_enc` is missing", "W_dec"]);
    contains(
        &with_tensor("W_skip", Some),
        &["refused", "`W_skip` is in the file, expected absent"],
    );
    let turned =
        |(dtype, shape, data): Edited<'_>| Some((dtype, shape.into_iter().rev().collect(), data));
    contains(&with_tensor("W_dec", turned), &["refused", "`W_dec`", "[6, 10]", "[10, 6]"]);
    contains(&with_tensor("W_enc", turned), &["refused", "`W_enc`"]);
    let long = |(_, shape, data): Edited<'_>| Some((Dtype::I32, shape, data));
    contains(&with_tensor("b_enc", long), &["refused", "`b_enc` is I32, expected F32"]);
    let nan = |(dtype, shape, mut data): Edited<'_>| {
        data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        Some((dtype, shape, data))
    };
    contains(&with_tensor("threshold", nan), &["refused", "`threshold` is NaN at 1"]);
    let half = |(_, shape, data): Edited<'_>| {
        let wide = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let data = wide.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
        Some((Dtype::F16, shape, data))
    };
    assert_eq!(with_tensor("W_enc", half), "weights are stored as F16, computed with in F32");
}

/// SAELens takes the exponential of a stored logarithm.
#[test]
fn thresholds_of_versions_before_6_may_be_logarithms() {
    let dir = tempfile::tempdir().unwrap();
    copy("saelens_jumprelu", dir.path());
    let before = formats::read(dir.path(), Expected::default()).unwrap().sae;
    let path = dir.path().join("sae_weights.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let log: Vec<u8> = before.params.threshold.iter().flat_map(|t| t.ln().to_le_bytes()).collect();
    let tensors = file.tensors().into_iter().map(|(name, view)| match name.as_str() {
        "threshold" => {
            ("log_threshold".to_owned(), TensorView::new(Dtype::F32, vec![10], &log).unwrap())
        }
        _ => (name, view),
    });
    safetensors::serialize_to_file(tensors.collect::<Vec<_>>(), None, &path).unwrap();
    let after = formats::read(dir.path(), Expected::default()).unwrap().sae;
    let (found, expected) = (&after.params.threshold, &before.params.threshold);
    super::close(found, expected, "thresholds", super::ROUNDING);
}

#[test]
fn truncated_files_are_refused_at_any_length() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gemma_scope", "gemma_scope_compressed", "saint", "before_1_6"] {
        let from = source(name);
        let bytes = fs_err::read(&from).unwrap();
        let path = dir.path().join(from.file_name().unwrap());
        for length in (0..bytes.len()).step_by(13).chain([bytes.len() - 1]) {
            fs_err::write(&path, &bytes[..length]).unwrap();
            refusal(&path, Expected { sae_from_format: None, top_k: Some(3) });
        }
    }
}

/// A flipped bit is refused, or in a place that decides nothing.
#[test]
fn flipped_bits_never_change_a_result_silently() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gemma_scope", "gemma_scope_compressed", "saint", "openai_topk"] {
        let from = source(name);
        let bytes = fs_err::read(&from).unwrap();
        let expected = Expected { sae_from_format: None, top_k: super::top_k(name) };
        let sae = formats::read(&from, expected).unwrap().sae;
        let path = dir.path().join(from.file_name().unwrap());
        for at in (0..bytes.len()).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs_err::write(&path, &flipped).unwrap();
            if let Ok(read) = formats::read(&path, expected) {
                assert_eq!(read.sae, sae, "{name}: bit {} of byte {at}", at % 8);
            }
        }
    }
}

#[test]
fn a_refusal_is_one_message_with_a_hint_and_code_65() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    for (name, words) in [("before_1_6", "before 1.6"), ("saint", "not in the file")] {
        let output = convert(&source(name), &to, "saelens").output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        contains(&said, &[words, "hint:", "sae.pt"]);
    }
    let output = convert(&dir.path().join("gone"), &to, "saelens").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(!to.exists());
}
