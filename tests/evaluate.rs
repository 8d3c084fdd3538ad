//! evaluate_sae through its command line: a training of this project, and the same in other formats.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::workload::{CONVERT, EVALUATE, SAVE, TRAIN, Workload, succeed};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 2e-3 * b.abs(), "{a}, expected {b}");
}

#[test]
fn a_training_has_the_figures_of_its_validation_in_any_format() {
    let work = Workload::new(60);
    work.succeed(SAVE, &[("ACTIVATION_SCALE", "0.5")]);
    work.succeed(TRAIN, &[("VALIDATION", "0.2")]);
    let evaluate = || {
        let mut stage = work.stage(EVALUATE);
        // The job's settings for 02; k is the training's own.
        stage.env_remove("RUN_ID").env("TOP_K", "99");
        stage
    };
    let path = work.run("training").join("evaluation.json");
    let (table, _) = succeed(evaluate().arg("--check"));
    assert!(table.contains("topk, k = 4") && table.contains("memory") && !path.exists(), "{table}");
    let (table, said) = succeed(&mut evaluate());
    for words in ["FVU", "95 % interval", "L0 of a row", "largest decoder cosine", "never active"] {
        assert!(table.contains(words), "`{words}` is missing from: {table}");
    }
    assert!(said.contains("evaluation.json` is written"), "{said}");
    let report = json(&path);
    let (figures, meta) = (&report["figures"], json(&work.run("training").join("meta.json")));
    let validation = &meta["validation"];
    assert_eq!(figures["rows"], validation["rows"]);
    assert_eq!(figures["documents"], 12);
    near(number(&figures["fvu"]), number(&validation["fvu"]));
    near(number(&figures["l0"]), number(&validation["l0"]));
    // There in units of the scaled input, here in the model's.
    let scale = 0.5 * number(&meta["input_scale"]);
    near(number(&figures["mse"]) * scale * scale, number(&validation["mse"]));
    near(number(&report["directions"]["decoder_norm"]["mean"]), 1.0);
    assert_eq!(report["notes"], serde_json::json!([]));

    let (foreign, output) = (work.path("sparsify"), work.path("foreign.json"));
    let mut convert = work.stage(CONVERT);
    convert.env("SAE_FROM", work.run("training")).env("SAE_TO", &foreign);
    succeed(convert.env("SAE_FORMAT", "sparsify"));
    let mut other = evaluate();
    other.env_remove("SAE_RUN_ID").env_remove("TOP_K").env("VALIDATION", "0.2");
    other.env("SAE_PATH", &foreign).env("OUTPUT", &output);
    succeed(&mut other);
    let same = json(&output);
    assert_eq!(same["subject"]["format"], "sparsify");
    near(number(&same["figures"]["fvu"]), number(&figures["fvu"]));

    let (table, _) = succeed(evaluate().env("VALIDATION", "0.5"));
    assert!(table.contains("trained on some of these rows"), "{table}");
}

#[test]
fn a_transcoder_is_evaluated_on_its_target() {
    let work = Workload::new(30);
    work.succeed(SAVE, &[("HOOK", "mlp_in mlp_out")]);
    let hooks = [("HOOK", "mlp_in"), ("TARGET_HOOK", "mlp_out"), ("VALIDATION", "0.2")];
    work.succeed(TRAIN, &hooks);
    work.succeed(EVALUATE, &[]);
    let report = json(&work.run("training").join("evaluation.json"));
    let meta = json(&work.run("training").join("meta.json"));
    near(number(&report["figures"]["fvu"]), number(&meta["validation"]["fvu"]));
    let mut foreign = work.stage(EVALUATE);
    foreign.env_remove("SAE_RUN_ID").env("SAE_PATH", work.run("training")).env("HOOK", "mlp_in");
    let output = foreign.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("is a transcoder") && said.contains("set TARGET_HOOK"), "{said}");
    succeed(foreign.env("TARGET_HOOK", "mlp_out"));
}

/// A ReLU SAE whose latents are the coordinates and their opposites; `gain` 1 gives every row back.
fn coordinates(path: &Path, width: usize, gain: f32) {
    fs_err::create_dir_all(path).unwrap();
    let sign = |latent: usize| if latent < width { 1.0_f32 } else { -1.0 };
    let place = |i: usize, latent: usize| f32::from(latent % width == i) * sign(latent);
    let latents = 2 * width;
    let w_enc: Vec<f32> = (0..width).flat_map(|i| (0..latents).map(move |l| place(i, l))).collect();
    let w_dec: Vec<f32> =
        (0..latents).flat_map(|l| (0..width).map(move |i| gain * place(i, l))).collect();
    let tensor = |values: Vec<f32>, shape: (usize, usize)| {
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let zeros = |n: usize| Tensor::new(vec![0.0_f32; n], &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([
        ("W_enc", tensor(w_enc, (width, latents))),
        ("W_dec", tensor(w_dec, (latents, width))),
        ("b_enc", zeros(latents)),
        ("b_dec", zeros(width)),
    ]);
    safetensors::serialize_to_file(&tensors, None, &path.join("sae_weights.safetensors")).unwrap();
    let cfg = json!({"architecture": "standard", "d_in": width, "d_sae": latents,
        "dtype": "float32", "apply_b_dec_to_input": false, "normalize_activations": "none"});
    fs_err::write(path.join("cfg.json"), cfg.to_string()).unwrap();
}

#[test]
fn in_the_model_a_perfect_sae_changes_nothing_and_an_empty_one_is_zero_ablation() {
    let work = Workload::new(40);
    work.succeed(SAVE, &[("DROP_FIRST", "2")]);
    let output = work.path("evaluation.json");
    let evaluate = |sae: &Path| {
        let mut stage = work.stage(EVALUATE);
        stage.env_remove("SAE_RUN_ID").env_remove("TOP_K").env("SAE_PATH", sae);
        stage.env("OUTPUT", &output).env("VALIDATION", "0.3").env("WITH_MODEL", "1");
        stage
    };
    let (perfect, empty) = (work.path("perfect"), work.path("empty"));
    coordinates(&perfect, 64, 1.0);
    coordinates(&empty, 64, 0.0);
    let (table, _) = succeed(&mut evaluate(&perfect));
    assert!(table.contains("CE recovered, of mean"), "{table}");
    let found = json(&output)["predictions"].take();
    let value = |name: &str| number(&found[name]["value"]);
    assert_eq!(value("spliced"), value("cross_entropy"));
    assert_eq!(value("recovered_from_zero"), 1.0);
    assert_eq!(value("divergence"), 0.0);
    assert_eq!(found["sentences_left_out"], 0);
    assert!(value("zero_ablation") != value("cross_entropy"));
    assert!(value("mean_ablation") != value("zero_ablation"));
    let of = |name: &str, i: usize| number(&found[name]["interval"][i]);
    let unchanged = value("cross_entropy");
    assert!(of("cross_entropy", 0) < unchanged && unchanged < of("cross_entropy", 1));
    // Every token that is not the sentence's last and has a row predicts the next.
    let counted = number(&json(&output)["figures"]["rows"]) as u64;
    let predicted = number(&found["tokens"]) as u64;
    assert_eq!(counted - predicted, 12);

    succeed(&mut evaluate(&empty));
    let empty = json(&output)["predictions"].take();
    assert_eq!(empty["spliced"]["value"], empty["zero_ablation"]["value"]);
    assert_eq!(number(&empty["recovered_from_zero"]["value"]), 0.0);
    assert!(number(&empty["divergence"]["value"]) > 0.0);

    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen2/model");
    let refused = evaluate(&perfect).env("MODEL_ID", &other).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains("is not that of") && said.contains("set MODEL_ID and REVISION"),
        "{said}"
    );
}
