//! Text, and settings that do not fit what there is.

use super::{Refusal, committed_and_unpublished, files, refused, text, trained};
use crate::workload::{Contents, SAVE, TOP, TRAIN, Workload};

#[test]
fn text_that_is_empty_lacks_the_field_or_is_elsewhere() {
    let work = Workload::new(4);
    let data = work.path("data.jsonl");
    let name = text(&data);
    let line = format!("{name}:1");
    let cases = [
        ("", 65, vec!["dataset", name, "is empty"], "HF_DATASET"),
        (
            "{\"story\": \"x\", \"id\": 3}\n",
            2,
            vec![&line, "no field `text`", "`story`, `id`"],
            "TEXT_FIELD",
        ),
        ("{\"text\": 3}\n", 2, vec![&line, "field `text` is", "expected a string"], "TEXT_FIELD"),
        ("[1]\n", 65, vec![&line, "not a JSON object"], "each line"),
        ("{\"text\": \"\"}\n", 65, vec!["no document has a token"], "TEXT_FIELD"),
    ];
    for (content, code, error, hint) in cases {
        fs_err::write(&data, content).unwrap();
        let mut stage = work.stage(SAVE);
        refused(stage.env("HF_DATASET", &data), &Refusal { code, error: &error, hint });
        assert!(!work.store().join("run_id.txt").exists());
        let _absent = fs_err::remove_dir_all(work.store());
    }
    let gone = work.path("gone.jsonl");
    let error = ["HF_DATASET names", text(&gone), "does not exist"];
    let expected = Refusal { code: 2, error: &error, hint: "HF_DATASET" };
    refused(work.stage(SAVE).env("HF_DATASET", &gone), &expected);
    assert!(!work.store().exists());
}

#[test]
fn a_byte_that_is_not_utf_8_keeps_the_shards_before_it() {
    let work = Workload::new(400);
    let data = work.path("text.jsonl");
    let mut bytes = fs_err::read(&data).unwrap();
    let at = bytes.len() - 20;
    bytes[at] = 0xff;
    fs_err::write(&data, bytes).unwrap();
    let (line, offset) = (format!("{}:400", text(&data)), format!("byte offset {at}"));
    let error = [&line[..], "not UTF-8", "byte 0xff", &offset];
    let expected = Refusal { code: 65, error: &error, hint: "iconv" };
    refused(&mut work.stage(SAVE), &expected);
    let before = committed_and_unpublished(&work.store());
    assert!(before >= 3, "{before} shards were committed");
    refused(&mut work.stage(SAVE), &expected);
    assert_eq!(committed_and_unpublished(&work.store()), before);
    let error = ["run `capture` is not complete"];
    let expected = Refusal { code: 65, error: &error, hint: "01_save_activations again" };
    refused(&mut work.stage(TRAIN), &expected);
}

#[test]
fn other_settings_for_a_run_there_is() {
    let work = trained(60);
    work.succeed(TOP, &[]);
    let before = Contents::read(&work.store());
    let error =
        ["run `capture`", "LAYER_NUM: run has `1`, now `0`", "MAX_LENGTH: run has `64`, now `32`"];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    refused(work.stage(SAVE).envs([("LAYER_NUM", "0"), ("MAX_LENGTH", "32")]), &expected);
    let error = ["run `training`", "TOP_K: run has `4`, now `8`", "LR: run has `unset`, now `0.5`"];
    let expected = Refusal { code: 2, error: &error, hint: "SAE_RUN_ID a new name" };
    refused(work.stage(TRAIN).envs([("TOP_K", "8"), ("LR", "0.5")]), &expected);
    Contents::read(&work.store()).assert_same(&before, "refused settings");

    work.succeed(SAVE, &[("RUN_ID", "other"), ("LAYER_NUM", "0")]);
    let error =
        ["training run `training` was begun on hook", "of capture `capture`", "of capture `other`"];
    let expected = Refusal { code: 2, error: &error, hint: "SAE_RUN_ID a new name" };
    refused(work.stage(TRAIN).env("RUN_ID", "other"), &expected);
    // The same in the middle of a training.
    fs_err::remove_file(work.run("training").join("meta.json")).unwrap();
    refused(work.stage(TRAIN).env("RUN_ID", "other"), &expected);
    let error =
        ["HOOK is `model.layers.1.post_attention_layernorm#in`", "0 of the 1 hooks of run `other`"];
    work.succeed(TRAIN, &[]);
    let expected = Refusal { code: 2, error: &error, hint: "HOOK" };
    refused(work.stage(TOP).env("RUN_ID", "other"), &expected);
    let data = work.path("text.jsonl");
    fs_err::write(&data, fs_err::read_to_string(&data).unwrap().replace("stone", "stony")).unwrap();
    let error = ["run `capture` was begun with dataset"];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    refused(&mut work.stage(SAVE), &expected);
}

#[test]
fn sizes_that_do_not_fit_the_rows() {
    let work = Workload::new(20);
    work.succeed(SAVE, &[]);
    let error = ["BATCH_SIZE_TRAIN is 1000000", "but there are only", "rows to train on"];
    let expected = Refusal { code: 2, error: &error, hint: "lower BATCH_SIZE_TRAIN" };
    refused(work.stage(TRAIN).env("BATCH_SIZE_TRAIN", "1000000"), &expected);
    let error = ["TOP_K (or K_START) is 257, but there are 256 latents"];
    let expected = Refusal { code: 2, error: &error, hint: "raise N_LATENTS_MULTIPLIER" };
    refused(work.stage(TRAIN).env("TOP_K", "257"), &expected);
    assert_eq!(files(&work.store().join("runs"), ""), [work.run("capture")]);
    for (name, value) in [("TOP_K", "0"), ("BATCH_SIZE_TRAIN", "-1"), ("LR", "inf"), ("SEED", "x")]
    {
        let error = [name, value];
        refused(work.stage(TRAIN).env(name, value), &Refusal { code: 2, error: &error, hint: "" });
    }
}

#[test]
fn workers_that_do_not_exist_or_changed() {
    let work = Workload::new(20);
    let error = ["worker 2 is outside 0..2"];
    let expected = Refusal { code: 2, error: &error, hint: "WORKER counts from 0" };
    refused(work.stage(SAVE).envs([("WORKER", "2"), ("WORKERS", "2")]), &expected);
    work.succeed(SAVE, &[("WORKER", "0"), ("WORKERS", "2")]);
    let error = ["run `capture`", "WORKERS: run has `2`, now `3`"];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    refused(work.stage(SAVE).envs([("WORKER", "0"), ("WORKERS", "3")]), &expected);
}
