//! SAELens reads what this project saves, and computes the same numbers from it.

use std::{collections::HashMap, path::Path, process::Command};

use pipeline_common::sae::{
    Activation, Parameters, Sae,
    formats::saelens::{self, About},
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
fn save(dir: &Path, activation: Activation) {
    let sae = random_sae(activation);
    saelens::save(dir, &sae, About { frequency: vec![0.5; D_SAE], ..About::default() }).unwrap();
    let x = normal(6, ROWS * D_IN);
    let sparse = sae.encode(&x);
    let reconstruction = sae.decode(&sparse);
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
fn saelens_loads_and_computes_the_same() {
    let Some(python) = super::venv::python("interop") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folders = [
        ("topk", Activation::TopK { k: 8 }),
        ("jumprelu", Activation::JumpRelu),
        ("standard", Activation::Relu),
        ("gated", Activation::Gated),
    ]
    .map(|(name, activation)| {
        let folder = dir.path().join(name);
        save(&folder, activation);
        folder
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/check_saelens.py");
    let output = Command::new(python).args([script, "1e-5"]).args(&folders).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    for (folder, line) in folders.iter().zip(said.lines()) {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(folder.file_name().unwrap().to_str(), report["architecture"].as_str(), "{line}");
        assert_eq!(report["ok"], true, "{line}");
    }
    assert_eq!(said.lines().count(), folders.len(), "{said}");
}
