//! A store that somebody or something changed.

use std::path::{Path, PathBuf};

use super::{HOOK_DIR, Refusal, damaged, files, refused, replaced, text, trained};
use crate::workload::{Contents, SAVE, TOP, TRAIN, Workload};

/// A training that has not begun; what the tests damage is not its own.
const NEW: (&str, &str) = ("SAE_RUN_ID", "new");

const CAPTURE_AGAIN: &str = "capture the run again under a new RUN_ID";

/// Input that is invalid or corrupt.
const fn invalid<'a>(error: &'a [&'a str], hint: &'a str) -> Refusal<'a> {
    Refusal { code: 65, error, hint }
}

/// The committed shards of the run `capture`.
fn shards(work: &Workload, directory: &str) -> Vec<PathBuf> {
    files(&work.run("capture").join(directory), ".safetensors")
}

/// Both readers of a capture refuse it, and write nothing.
fn readers_refuse(work: &Workload, expected: &Refusal<'_>) {
    let before = Contents::read(&work.store());
    refused(work.stage(TRAIN).envs([NEW]), expected);
    refused(&mut work.stage(TOP), expected);
    Contents::read(&work.store()).assert_same(&before, "a refused reader");
}

fn flip(at: usize) -> impl Fn(&mut Vec<u8>) {
    move |bytes| bytes[at] ^= 0x10
}

#[test]
fn shards_that_changed_after_they_were_committed() {
    let work = trained(200);
    for directory in [HOOK_DIR, "tokens"] {
        let shards = shards(&work, directory);
        assert!(shards.len() >= 2, "{shards:?}");
        let shard = &shards[1];
        let length = fs_err::metadata(shard).unwrap().len() as usize;
        for at in [20, 5000, length - 1] {
            damaged(shard, flip(at), || {
                let error = [text(shard), "is corrupt: blake3 is", "the manifest says"];
                readers_refuse(&work, &invalid(&error, CAPTURE_AGAIN));
            });
        }
        for cut in [0, 100, 8000, length - 1] {
            damaged(
                shard,
                |bytes| bytes.truncate(cut),
                || {
                    let sizes = format!("length in bytes is {cut}, expected {length}");
                    readers_refuse(&work, &invalid(&[text(shard), &sizes], CAPTURE_AGAIN));
                },
            );
        }
        let good = fs_err::read(shard).unwrap();
        fs_err::remove_file(shard).unwrap();
        let error = [text(shard), "No such file"];
        readers_refuse(&work, &invalid(&error, ""));
        fs_err::write(shard, good).unwrap();
    }
    work.succeed(TOP, &[]);
}

#[test]
fn a_manifest_with_a_broken_line() {
    let work = trained(200);
    let manifest = work.run("capture").join("manifest.jsonl");
    let first = fs_err::read_to_string(&manifest).unwrap().find('\n').unwrap() + 1;
    let break_second = |bytes: &mut Vec<u8>| bytes[first + 30] = b'\n';
    damaged(&manifest, break_second, || {
        let place = format!("line 2 (byte {first})");
        let error = [text(&manifest), &place];
        readers_refuse(&work, &invalid(&error, "restore the manifest"));
    });
    damaged(
        &manifest,
        |bytes| replaced(bytes, HOOK_DIR, "elsewhere"),
        || {
            let error = ["elsewhere/shard-0-0.safetensors", "No such file"];
            readers_refuse(&work, &invalid(&error, ""));
        },
    );
    damaged(
        &manifest,
        |bytes| bytes.extend_from_slice(b"{\"worker\": 0, \"sh"),
        || {
            let (_, said) = work.succeed(TOP, &[]);
            assert!(said.contains("dropping a torn last line"), "{said}");
        },
    );
}

/// As a capture that was killed while it wrote the last line of its manifest.
fn tear(work: &Workload) -> PathBuf {
    let run = work.run("capture");
    fs_err::remove_file(work.store().join("run_id.txt")).unwrap();
    fs_err::remove_file(run.join("manifest.jsonl")).unwrap();
    let meta = run.join("meta.json");
    let mut value: serde_json::Value =
        serde_json::from_slice(&fs_err::read(&meta).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("totals").unwrap();
    fs_err::write(&meta, value.to_string()).unwrap();
    let lines = run.join("workers/0.jsonl");
    let whole = fs_err::read(&lines).unwrap();
    fs_err::write(&lines, &whole[..whole.len() - 40]).unwrap();
    lines
}

#[test]
fn a_torn_last_line_costs_one_shard() {
    let work = Workload::new(300);
    work.succeed(SAVE, &[]);
    let undisturbed = Contents::read(&work.store());
    let lines = tear(&work);
    let first = fs_err::read_to_string(&lines).unwrap().find('\n').unwrap() + 1;
    damaged(
        &lines,
        |bytes| bytes[5] = b'!',
        || {
            let error = [text(&lines), "line 1 (byte 0)"];
            let expected = invalid(&error, "restore the manifest");
            refused(&mut work.stage(SAVE), &expected);
        },
    );
    damaged(
        &lines,
        |bytes| drop(bytes.drain(..first)),
        || {
            let error = [text(&lines), "expected them to follow 0"];
            refused(&mut work.stage(SAVE), &invalid(&error, ""));
        },
    );
    let (_, said) = work.succeed(SAVE, &[]);
    assert!(said.contains("dropping a torn last line"), "{said}");
    Contents::read(&work.store()).assert_same(&undisturbed, "a torn line");
}

#[test]
fn runs_that_are_not_there() {
    let work = Workload::new(20);
    let pointer = work.store().join("run_id.txt");
    refused(
        work.stage(TRAIN).env_remove("RUN_ID"),
        &invalid(&["no RUN_ID given", text(&pointer)], "run 01_save_activations first"),
    );
    let sae_pointer = work.store().join("sae_run_id.txt");
    refused(
        work.stage(TOP).env_remove("SAE_RUN_ID"),
        &invalid(&["no SAE_RUN_ID given", text(&sae_pointer)], "run 02_train_sae first"),
    );
    assert!(!work.store().exists());
    work.succeed(SAVE, &[]);
    work.succeed(TRAIN, &[]);
    for (variable, stage) in [("RUN_ID", TRAIN), ("RUN_ID", TOP), ("SAE_RUN_ID", TOP)] {
        let names = format!("{variable} names run `gone`");
        let expected = Refusal { code: 2, error: &[&names], hint: "capture, training" };
        refused(work.stage(stage).env(variable, "gone"), &expected);
        let names = format!("{variable} `../x`");
        let expected = Refusal { code: 2, error: &[&names], hint: "use letters" };
        refused(work.stage(stage).env(variable, "../x"), &expected);
    }
    for (file, variable, stage) in [(&pointer, "RUN_ID", TRAIN), (&sae_pointer, "SAE_RUN_ID", TOP)]
    {
        damaged(
            file,
            |bytes| *bytes = b"gone\n".to_vec(),
            || {
                let error = [text(file), "names run `gone`", "does not exist"];
                refused(
                    work.stage(stage).env_remove(variable),
                    &invalid(&error, "capture, training"),
                );
            },
        );
    }
}

#[test]
fn runs_of_the_other_kind() {
    let work = trained(60);
    let before = Contents::read(&work.store());
    let meta = |run: &str| work.run(run).join("meta.json");
    let other = |path: &Path, variables: &[(&str, &str)], stage, kind| {
        let error = [text(path), kind];
        let expected = invalid(&error, "RUN_ID names a capture run");
        refused(work.stage(stage).envs(variables.iter().copied()), &expected);
    };
    let (capture, training) = (meta("capture"), meta("training"));
    other(&training, &[("RUN_ID", "training"), NEW], TRAIN, "not the file of a capture run");
    other(&training, &[("RUN_ID", "training")], TOP, "not the file of a capture run");
    other(&training, &[("RUN_ID", "training")], SAVE, "not the file of a capture run");
    other(&capture, &[("SAE_RUN_ID", "capture")], TRAIN, "not the file of a training run");
    other(&capture, &[("SAE_RUN_ID", "capture")], TOP, "not the file of a training run");
    Contents::read(&work.store()).assert_same(&before, "refused runs");
}

#[test]
fn files_of_a_newer_program() {
    let work = trained(60);
    for (run, stages) in [("capture", &[SAVE, TRAIN, TOP][..]), ("training", &[TRAIN, TOP])] {
        let meta = work.run(run).join("meta.json");
        let newer = |bytes: &mut Vec<u8>| replaced(bytes, "\"schema\": 1", "\"schema\": 2");
        damaged(&meta, newer, || {
            for stage in stages {
                let error = [text(&meta), "schema is 2, this program knows up to 1"];
                let hint = "the version of the pipeline that wrote the run";
                refused(&mut work.stage(stage), &invalid(&error, hint));
            }
        });
        damaged(
            &meta,
            |bytes| bytes.truncate(30),
            || {
                for stage in stages {
                    let error = [text(&meta), "EOF"];
                    refused(&mut work.stage(stage), &invalid(&error, ""));
                }
            },
        );
    }
}

#[test]
fn a_checkpoint_that_changed() {
    let work = trained(60);
    let undisturbed = Contents::read(&work.store());
    let run = work.run("training");
    // As a training that was killed before its end.
    fs_err::remove_file(run.join("meta.json")).unwrap();
    let checkpoint = files(&run.join("checkpoints"), ".safetensors").pop().unwrap();
    damaged(&checkpoint, flip(9000), || {
        let error = [text(&checkpoint), "is corrupt: blake3 is", "expected"];
        let expected = invalid(&error, "checkpoints/");
        refused(&mut work.stage(TRAIN), &expected);
    });
    let latest = run.join("checkpoints/latest.json");
    damaged(
        &latest,
        |bytes| bytes.truncate(10),
        || {
            let error = [text(&latest), "EOF"];
            refused(&mut work.stage(TRAIN), &invalid(&error, ""));
        },
    );
    damaged(
        &run.join("history.jsonl"),
        |bytes| bytes.truncate(10),
        || {
            let error = ["history.jsonl", "has 10 bytes", "when the checkpoint was written"];
            refused(&mut work.stage(TRAIN), &invalid(&error, ""));
        },
    );
    work.succeed(TRAIN, &[]);
    Contents::read(&work.store()).assert_same(&undisturbed, "a restored checkpoint");
}

#[test]
fn an_sae_that_this_program_cannot_compute() {
    let work = trained(60);
    let run = work.run("training");
    let (cfg, weights) = (run.join("cfg.json"), run.join("sae_weights.safetensors"));
    let cases = [
        (
            "\"topk\"",
            "\"lorsa\"",
            vec!["`architecture` is `lorsa`", "jumprelu, standard, gated"],
            "something else",
        ),
        ("\"k\": 4,", "", vec!["`k` is missing"], ""),
        ("\"k\": 4", "\"k\": 0", vec!["`k` is `0`"], "belongs to other weights"),
        ("\"k\": 4", "\"k\": 257", vec!["`k` is `257`"], "belongs to other weights"),
        (
            "\"normalize_activations\": \"none\"",
            "\"normalize_activations\": \"constant_norm_rescale\"",
            vec!["`normalize_activations` is `constant_norm_rescale`, expected `none`"],
            "rows would have to be scaled one by one",
        ),
    ];
    for (from, to, mut error, hint) in cases {
        damaged(
            &cfg,
            |bytes| replaced(bytes, from, to),
            || {
                error.push(text(&cfg));
                refused(&mut work.stage(TOP), &invalid(&error, hint));
            },
        );
    }
    damaged(
        &cfg,
        |bytes| replaced(bytes, "\"d_sae\": 256", "\"d_sae\": 255"),
        || {
            let error = [text(&weights), "`W_enc`", "[64, 256], expected [64, 255]"];
            refused(&mut work.stage(TOP), &invalid(&error, ""));
        },
    );
    damaged(
        &weights,
        |bytes| bytes.truncate(6000),
        || {
            refused(&mut work.stage(TOP), &invalid(&[text(&weights)], ""));
        },
    );
    assert!(!run.join("top_sentences").exists());
}
