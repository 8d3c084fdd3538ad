//! discover_layers through its command line.

use std::process::Output;

use assert_cmd::Command;
use pipeline_common::model::{Hook, ModelInfo};
use serde_json::Value;

use crate::golden::{golden, models};

fn discover(model: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_discover_layers"));
    command.env_clear().arg("--model-id").arg(model).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn object(model: &str, arguments: &[&str]) -> Value {
    let output = discover(&golden(model).join("model"), &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_table_shows_widths_names_and_the_middle_layer() {
    let output = discover(&golden("llama_tied_rope3").join("model"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for line in [
        "LlamaForCausalLM (llama)",
        "3 (0 to 2)",
        "d_model 64, d_mlp 128",
        "layer 1, the middle one",
        "at most 1,280,000 (10,000 documents of 128 tokens)",
        "(128 B a token)",
    ] {
        assert!(table.contains(line), "{line} is missing from\n{table}");
    }
    let marked: Vec<&str> = table.lines().filter(|l| l.starts_with("* ")).collect();
    assert_eq!(marked.len(), 10);
    let names: Vec<&str> = marked
        .iter()
        .find(|l| l.contains("post_attention_layernorm "))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        names[1..],
        [
            "model.layers.1.post_attention_layernorm",
            "blocks.1.ln2.hook_normalized",
            "llamaforcausallm_model_layers_1_post_attention_layernorm",
        ]
    );
    assert!(text(&output.stderr).contains("reading the middle one, 1"));
}

#[test]
fn json_has_every_hook_and_adds_up() {
    for (model, layers, width) in [("llama_tied_rope3", 3, 64), ("qwen2", 2, 56), ("bert", 3, 48)] {
        let found = object(model, &["--data-limit", "1000", "--max-length", "64"]);
        assert_eq!(found["n_layers"], layers);
        assert_eq!(found["recommended_layer"], layers / 2);
        assert_eq!(found["parameters"], found["weights"]["parameters"]);
        let hooks = found["hooks"].as_array().unwrap();
        let chosen: Vec<&Value> = hooks.iter().filter(|h| h["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0]["layer"], layers / 2);
        assert_eq!(chosen[0]["alias"], if model == "bert" { "resid_post" } else { "resid_mid" });
        assert_eq!(chosen[0]["width"], width);
        let estimate = &found["estimate"];
        assert_eq!(estimate["tokens"], 64_000);
        assert_eq!(estimate["bytes_per_token"], 2 * width);
        assert_eq!(estimate["flop_per_token"], chosen[0]["flop_per_token"]);
        assert!(estimate["cpu_hours"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn every_family_has_a_table_of_its_hooks() {
    for name in models() {
        let dir = golden(&name).join("model");
        let info = ModelInfo::from_dir(&dir).unwrap();
        let output = discover(&dir, &[]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output.stderr));
        let table = text(&output.stdout);
        let hooks = Hook::all(&info);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.trim_start_matches("* ").split_whitespace().collect())
            .collect();
        for hook in &hooks {
            let names =
                [hook.module_path(&info), hook.transformer_lens(&info), hook.signature(&info)];
            assert!(rows.iter().any(|row| *row == names), "{name}: {names:?} is not in\n{table}");
        }
        for site in info.sites() {
            assert!(table.contains(site.what), "{name}: {}", site.what);
        }
        let found = object(&name, &[]);
        assert_eq!(found["hooks"].as_array().unwrap().len(), hooks.len(), "{name}");
        // Where there is no residual stream between the halves of a block, its end is read.
        let ends = ["gpt_neox", "bert", "roberta", "xlm_roberta"];
        let chosen = if ends.contains(&name.as_str()) { "resid_post" } else { "resid_mid" };
        let hooks = found["hooks"].as_array().unwrap().iter();
        let aliases: Vec<&Value> =
            hooks.filter(|h| h["chosen"] == true).map(|h| &h["alias"]).collect();
        assert_eq!(aliases, [chosen], "{name}");
    }
}

#[test]
fn points_are_aligned_and_a_missing_one_has_its_reason() {
    for (name, missing) in
        [("bert", None), ("gpt_neox", Some("resid_mid")), ("mixtral", Some("mlp_act"))]
    {
        let output = discover(&golden(name).join("model"), &[]);
        let table = text(&output.stdout);
        let points = table.split("\n\n").nth(1).unwrap().lines();
        // Of each line, where its last column begins.
        let ends: Vec<usize> = points.clone().map(|line| line.rfind("  ").unwrap()).collect();
        assert!(ends.windows(2).all(|w| w[0] == w[1]), "{name}: {table}");
        let none = points.clone().find(|line| line.contains("  none: "));
        assert_eq!(none.map(|line| line.split(' ').next().unwrap()), missing, "{table}");
    }
}

#[test]
fn several_hooks_cost_their_sum_and_the_deepest() {
    let one = object("llama_tied_rope3", &["--layers", "2", "--hook", "mlp_act"]);
    let two = object("llama_tied_rope3", &["--layers", "0,2", "--hook", "mlp_act"]);
    assert_eq!(one["estimate"]["bytes_per_token"], 256);
    assert_eq!(two["estimate"]["bytes_per_token"], 512);
    assert_eq!(one["estimate"]["flop"], two["estimate"]["flop"]);
}

#[test]
fn a_layer_or_hook_that_does_not_exist_prints_the_list() {
    let model = golden("llama_tied_rope3").join("model");
    for (arguments, hint) in [
        (["--layer-num", "16"], "between 0 and 2"),
        (["--layers", "0,3"], "between 0 and 2"),
        (["--hook", "resid_middle"], "hooks: resid_pre"),
        (["--hook", "blocks.7.hook_resid_mid"], "between 0 and 2"),
    ] {
        let output = discover(&model, &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stdout).contains("blocks.2.hook_resid_post"), "{arguments:?}");
        assert!(text(&output.stderr).contains(hint), "{}", text(&output.stderr));
    }
}

#[test]
fn a_configuration_without_weights_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let config = golden("qwen2").join("model/config.json");
    fs_err::copy(config, dir.path().join("config.json")).unwrap();
    let output = discover(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("config.json alone"));
}

#[test]
fn a_missing_model_an_empty_folder_and_damaged_weights() {
    let dir = tempfile::tempdir().unwrap();
    let gone = discover(&dir.path().join("gone"), &[]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(text(&gone.stderr).contains("MODEL_ID"));
    let empty = discover(dir.path(), &[]);
    assert_eq!(empty.status.code(), Some(65));
    assert!(text(&empty.stderr).contains("config.json"));
    let config = golden("qwen2").join("model/config.json");
    fs_err::copy(config, dir.path().join("config.json")).unwrap();
    fs_err::write(dir.path().join("model.safetensors"), b"torn").unwrap();
    let damaged = discover(dir.path(), &[]);
    assert_eq!(damaged.status.code(), Some(65));
    assert!(text(&damaged.stderr).contains("model.safetensors"));
}
