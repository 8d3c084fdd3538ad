//! SAELens, sparsify and dictionary_learning read what this project saves for them, and compute the same
//! numbers from it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

use pipeline_common::sae::{
    Activation, Parameters, RowNorm, Sae,
    formats::{self, Target, saelens::About},
    init::normalise,
    parameters::Shape,
    random::{Normal, Purpose},
};
use safetensors::{Dtype, tensor::TensorView};

const D_IN: usize = 64;
const D_SAE: usize = 256;
const ROWS: usize = 100;

fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    Normal::new(seed, Purpose::Decoder).fill(&mut out);
    out
}

/// A random SAE with directions of norm 1 that differ between encoder and decoder.
fn random_sae(activation: Activation) -> Sae {
    let mut params = Parameters::zeros(Shape {
        threshold: activation == Activation::JumpRelu,
        gate: activation == Activation::Gated,
        ..Shape::autoencoder(D_IN, D_SAE)
    });
    params.w_enc = normal(1, D_SAE * D_IN);
    params.w_dec = normal(2, D_SAE * D_IN);
    for matrix in [&mut params.w_enc, &mut params.w_dec] {
        matrix.chunks_exact_mut(D_IN).for_each(normalise);
    }
    params.b_enc = normal(3, D_SAE).iter().map(|x| 0.1 * x).collect();
    params.b_dec = normal(4, D_IN);
    params.r_mag.iter_mut().zip(normal(7, D_SAE)).for_each(|(r, x)| *r = 0.3 * x);
    params.b_mag.iter_mut().zip(normal(8, D_SAE)).for_each(|(b, x)| *b = 0.1 * x);
    params.threshold.iter_mut().zip(normal(5, D_SAE)).for_each(|(t, x)| *t = x.abs());
    Sae::new(params, activation)
}

/// Saves an SAE with rows, its latents and its reconstruction beside it.
fn save(dir: &Path, sae: &Sae, target: Target) {
    let about = About { frequency: vec![0.5; D_SAE], ..About::default() };
    formats::write(dir, target, sae, &about).unwrap();
    let x = normal(6, ROWS * D_IN);
    let sparse = sae.encode(&x);
    let reconstruction = sae.reconstruct(&x, &sparse);
    let mut latents = vec![0.0; ROWS * D_SAE];
    for (row, dense) in latents.chunks_exact_mut(D_SAE).enumerate() {
        let (index, value) = sparse.row(row);
        index.iter().zip(value).for_each(|(i, v)| dense[*i as usize] = *v);
    }
    let tensors = [("x", x, D_IN), ("latents", latents, D_SAE)];
    let tensors = tensors.into_iter().chain([("reconstruction", reconstruction, D_IN)]);
    let bytes: Vec<(&str, Vec<u8>, usize)> = tensors
        .map(|(name, data, width)| {
            (name, data.iter().flat_map(|v| v.to_le_bytes()).collect(), width)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = bytes
        .iter()
        .map(|(name, data, width)| {
            (*name, TensorView::new(Dtype::F32, vec![ROWS, *width], data).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &dir.join("check.safetensors")).unwrap();
}

#[test]
fn other_projects_load_and_compute_the_same() {
    let Some(python) = super::packages::python("interop") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (top_k, none) = (Activation::TopK { k: 8 }, None);
    let cases = [
        ("topk", top_k, Target::SaeLens, none),
        ("topk", top_k, Target::SaeLens, Some(RowNorm::LAYER_NORM)),
        ("jumprelu", Activation::JumpRelu, Target::SaeLens, none),
        ("standard", Activation::Relu, Target::SaeLens, none),
        ("gated", Activation::Gated, Target::SaeLens, none),
        ("sparsify topk", top_k, Target::Sparsify, none),
        ("AutoEncoderTopK", top_k, Target::DictionaryLearning, none),
        ("JumpReluAutoEncoder", Activation::JumpRelu, Target::DictionaryLearning, none),
        ("AutoEncoder", Activation::Relu, Target::DictionaryLearning, none),
        ("GatedAutoEncoder", Activation::Gated, Target::DictionaryLearning, none),
    ];
    let folders: Vec<PathBuf> = cases
        .iter()
        .enumerate()
        .map(|(i, (_, activation, target, row_norm))| {
            let folder = dir.path().join(i.to_string());
            save(&folder, &Sae { row_norm: *row_norm, ..random_sae(*activation) }, *target);
            folder
        })
        .collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/check_saes.py");
    let output = Command::new(python).args([script, "1e-5"]).args(&folders).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    // The projects print lines of their own.
    let reports: Vec<&str> = said.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(reports.len(), cases.len(), "{said}");
    for ((architecture, ..), line) in cases.iter().zip(reports) {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(Some(*architecture), report["architecture"].as_str(), "{line}");
        assert_eq!(report["ok"], true, "{line}");
    }
}
