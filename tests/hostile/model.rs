//! Checkpoints and hooks.

use std::{path::PathBuf, process::Command};

use candle_core::{Device, safetensors as st};

use super::{Refusal, files, refused, text};
use crate::{
    golden::golden,
    workload::{SAVE, TOP, TRAIN, Workload},
};

/// A copy of a golden checkpoint that may be damaged.
fn checkpoint(work: &Workload) -> PathBuf {
    let copy = work.path("model");
    fs_err::create_dir(&copy).unwrap();
    for file in files(&golden("llama_tied_rope3").join("model"), "") {
        fs_err::write(copy.join(file.file_name().unwrap()), fs_err::read(&file).unwrap()).unwrap();
    }
    copy
}

fn save(work: &Workload, variables: &[(&str, &str)]) -> Command {
    let mut command = work.stage(SAVE);
    command.envs(variables.iter().copied());
    command
}

/// Capture and `--check` refuse the same, and leave no trace in the store.
fn refused_at_once(work: &Workload, variables: &[(&str, &str)], expected: &Refusal<'_>) {
    refused(&mut save(work, variables), expected);
    refused(save(work, variables).arg("--check"), expected);
    assert!(!work.store().exists(), "{:?}", files(&work.store(), ""));
}

#[test]
fn weights_that_are_missing_or_truncated() {
    let work = Workload::new(4);
    let model = checkpoint(&work);
    let weights = model.join("model.safetensors");
    let whole = fs_err::read(&weights).unwrap();
    for length in [0, 3000, whole.len() - 1] {
        fs_err::write(&weights, &whole[..length]).unwrap();
        let error = [text(&weights), "not a complete safetensors file"];
        let expected = Refusal { code: 65, error: &error, hint: "fetch it again" };
        refused_at_once(&work, &[("MODEL_ID", text(&model))], &expected);
    }
    fs_err::remove_file(&weights).unwrap();
    let error = ["no model.safetensors", "pytorch_model.bin.index.json in", text(&model)];
    let expected = Refusal { code: 65, error: &error, hint: "torch.save" };
    refused_at_once(&work, &[("MODEL_ID", text(&model))], &expected);

    let index = model.join("model.safetensors.index.json");
    let places = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
    fs_err::write(&index, places).unwrap();
    let error = [text(&index), "`model.norm.weight`", "`model-00001-of-00002.safetensors`"];
    let expected = Refusal { code: 65, error: &error, hint: "fetch it again" };
    refused_at_once(&work, &[("MODEL_ID", text(&model))], &expected);
}

#[test]
fn a_family_that_is_not_implemented() {
    let work = Workload::new(4);
    let config = checkpoint(&work).join("config.json");
    let json = fs_err::read_to_string(&config).unwrap();
    let other = json.replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba2\"");
    assert_ne!(json, other);
    fs_err::write(&config, other).unwrap();
    let error = [text(&config), "model_type `mamba2`", "supported: llama, mistral, qwen2, "];
    let model = work.path("model");
    let expected = Refusal { code: 65, error: &error, hint: "" };
    refused_at_once(&work, &[("MODEL_ID", text(&model))], &expected);
    let gone = work.path("gone");
    let error = ["MODEL_ID names", text(&gone), "does not exist"];
    let expected = Refusal { code: 2, error: &error, hint: "owner/name" };
    refused_at_once(&work, &[("MODEL_ID", text(&gone))], &expected);
}

#[test]
fn layers_and_hooks_that_do_not_exist() {
    let work = Workload::new(4);
    let layer = |error| Refusal { code: 2, error, hint: "LAYER_NUM between 0 and 2" };
    refused_at_once(&work, &[("LAYER_NUM", "3")], &layer(&["layer 3", "layers 0 to 2"]));
    refused_at_once(&work, &[("LAYERS", "0 9")], &layer(&["layer 9", "layers 0 to 2"]));
    let error = ["`resid_middle` is not a hook of LlamaForCausalLM"];
    let expected = Refusal { code: 2, error: &error, hint: "resid_mid" };
    refused_at_once(&work, &[("HOOK", "resid_middle")], &expected);
}

/// The golden checkpoint with embeddings times `factor`.
fn louder(work: &Workload, factor: f64) -> PathBuf {
    let model = checkpoint(work);
    let path = model.join("model.safetensors");
    let mut tensors = st::load(&path, &Device::Cpu).unwrap();
    let name = "model.embed_tokens.weight";
    tensors.insert(name.into(), (&tensors[name] * factor).unwrap());
    st::save(&tensors, &path).unwrap();
    model
}

#[test]
fn activations_beyond_f16_need_a_scale() {
    let work = Workload::new(40);
    let model = louder(&work, 1e7);
    let variables = [("MODEL_ID", text(&model)), ("HOOK", "resid_pre")];
    let error = ["hook `model.layers.1#in`", "row 0: ", "does not fit f16 (largest 65504)"];
    let expected = Refusal { code: 65, error: &error, hint: "set ACTIVATION_SCALE" };
    refused(&mut save(&work, &variables), &expected);
    assert_eq!(super::committed_and_unpublished(&work.store()), 0);

    let scaled = [("ACTIVATION_SCALE", "0.0001"), ("RUN_ID", "scaled")];
    let all = [&variables[..], &scaled].concat();
    work.succeed(SAVE, &all);
    work.succeed(TRAIN, &all[1..]);
    work.succeed(TOP, &all[1..]);
}

#[test]
fn weights_that_are_not_numbers() {
    let work = Workload::new(4);
    let model = louder(&work, f64::NAN);
    let error = ["post_attention_layernorm#in`, row 0: the activation is not a number"];
    let expected = Refusal { code: 65, error: &error, hint: "check the checkpoint" };
    refused(&mut save(&work, &[("MODEL_ID", text(&model))]), &expected);
    assert_eq!(super::committed_and_unpublished(&work.store()), 0);
}

#[test]
fn an_sae_of_scaled_shards_reads_the_model_s_own_activations() {
    let work = Workload::new(100);
    let trained = |name: &str, scale: &str| {
        let run = [("RUN_ID", name), ("ACTIVATION_SCALE", scale)];
        work.succeed(SAVE, &run);
        let sae = format!("sae-{name}");
        work.succeed(TRAIN, &[run[0], ("SAE_RUN_ID", &sae)]);
        work.succeed(TOP, &[run[0], ("SAE_RUN_ID", &sae)]);
        let top = fs_err::read(work.run(&sae).join("top_sentences/latents.jsonl")).unwrap();
        let first: serde_json::Value =
            serde_json::from_slice(top.split(|b| *b == b'\n').next().unwrap()).unwrap();
        let weights = work.run(&sae).join("sae_weights.safetensors");
        let tensors = st::load(weights, &Device::Cpu).unwrap();
        let b_dec = tensors["b_dec"].to_vec1::<f32>().unwrap();
        (b_dec, first["max"].as_f64().unwrap())
    };
    let (plain, plain_max) = trained("plain", "1");
    let (scaled, scaled_max) = trained("scaled", "4");
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let off: Vec<f32> = plain.iter().zip(&scaled).map(|(a, b)| a - b).collect();
    assert!(norm(&off) < 0.01 * norm(&plain), "{} of {}", norm(&off), norm(&plain));
    assert!((plain_max - scaled_max).abs() < 0.02 * plain_max, "{plain_max} {scaled_max}");
}
