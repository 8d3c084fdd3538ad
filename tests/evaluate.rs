//! evaluate_sae through its command line: a training of this project, and the same in other formats.

use std::path::Path;

use serde_json::Value;

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
