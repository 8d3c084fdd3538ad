//! What a capture keeps, what it refuses to begin with, and what it says it will cost.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use candle_core::{Device, Tensor, safetensors as st};
use pipeline_common::{
    capture::CaptureMeta,
    shard::{ShardSet, manifest},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    golden::golden,
    workload::{Contents, SAVE, Workload, succeed},
};

type Variables<'a> = &'a [(&'a str, &'a str)];

/// One row of a run: its document, its position there, and every hook's numbers.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    document: u64,
    position: u32,
    id: u32,
    last: bool,
    hooks: Vec<Vec<half::f16>>,
}

impl Row {
    fn norm(&self, hook: usize) -> f64 {
        self.hooks[hook].iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt()
    }
}

fn meta(work: &Workload, run: &str) -> CaptureMeta {
    CaptureMeta::read_complete(&work.run(run)).unwrap()
}

fn rows(work: &Workload, run: &str) -> Vec<Row> {
    let dir = work.run(run);
    let hooks = meta(work, run).hooks;
    let sets: Vec<ShardSet> =
        hooks.iter().map(|h| ShardSet::open(&dir, &h.name).unwrap()).collect();
    let mut all = vec![];
    for shard in 0..sets[0].shards() {
        let tokens = sets[0].tokens(shard).unwrap();
        for sentence in 0..tokens.sentences() {
            let rows = tokens.sentence_rows(sentence);
            for row in rows.clone() {
                let token = tokens.token(row);
                let at = sets[0].first_row(shard) + row;
                all.push(Row {
                    document: tokens.document(sentence),
                    position: token.position,
                    id: token.id,
                    last: row + 1 == rows.end,
                    hooks: sets.iter().map(|s| s.row(at).to_vec()).collect(),
                });
            }
        }
    }
    all
}

/// Captures everything as run `all` and with `variables` as run `some`; both runs' rows.
fn all_and_some(work: &Workload, common: Variables<'_>, variables: Variables<'_>) -> [Vec<Row>; 2] {
    if !work.run("all").exists() {
        let all = [common, &[("RUN_ID", "all"), ("KEEP_SPECIAL", "1")]].concat();
        work.succeed(SAVE, &all);
    }
    let _none_before = fs_err::remove_dir_all(work.run("some"));
    work.succeed(SAVE, &[common, &[("RUN_ID", "some")], variables].concat());
    [rows(work, "all"), rows(work, "some")]
}

/// Rows are equal bit for bit; whether one is its sentence's last depends on what was kept.
fn assert_rows<'a>(some: &[Row], expected: impl Iterator<Item = &'a Row>) {
    let bare = |row: &Row| Row { last: false, ..row.clone() };
    let expected: Vec<Row> = expected.map(bare).collect();
    let some: Vec<Row> = some.iter().map(bare).collect();
    let places = |rows: &[Row]| rows.iter().map(|r| (r.document, r.position)).collect::<Vec<_>>();
    assert_eq!(places(&some), places(&expected));
    assert!(some == expected, "other numbers");
}

#[test]
fn special_tokens_bos_and_first_positions() {
    // Llama's tokenizer puts BOS first, BERT's also [SEP] last.
    for (model, separator) in [("llama_tied_rope3", false), ("bert", true)] {
        let work = Workload::new(40);
        let folder = golden(model).join("model");
        let common = [("MODEL_ID", folder.to_str().unwrap())];
        let text = |r: &Row| r.position > 0 && !(separator && r.last);
        type Keeps<'a> = &'a dyn Fn(&Row) -> bool;
        let cases: [(Variables<'_>, Keeps<'_>); 4] = [
            (&[], &text),
            (&[("KEEP_BOS", "1")], &|r| r.position == 0 || text(r)),
            (&[("DROP_FIRST", "3")], &|r| r.position >= 3 && text(r)),
            (&[("DROP_FIRST", "60")], &|r| r.position >= 60 && text(r)),
        ];
        for (variables, keeps) in cases {
            let [all, some] = all_and_some(&work, &common, variables);
            assert_rows(&some, all.iter().filter(|r| keeps(r)));
            let first = all.iter().filter(|r| text(r) && !keeps(r)).count() as u64;
            let totals = meta(&work, "some").totals.unwrap();
            assert_eq!(totals.tokens_seen, all.len() as u64);
            assert_eq!((totals.dropped.first, totals.dropped.norm), (first, 0), "{variables:?}");
            assert_eq!(totals.dropped.special, all.len() as u64 - first - totals.rows);
        }
    }
}

#[test]
fn what_the_run_says_about_its_policies() {
    let work = Workload::new(20);
    let (_, said) = work.succeed(SAVE, &[("KEEP_BOS", "1"), ("DROP_NORM_ABOVE", "10x")]);
    assert!(
        said.contains("no rows for: special tokens other than BOS; rows of a norm above 10 times")
    );
    let policy = serde_json::to_value(meta(&work, "capture").policy.unwrap()).unwrap();
    assert_eq!(policy["special_tokens"], "dropped");
    assert_eq!(policy["bos"], "kept");
    assert_eq!(policy["max_length"], 64);
    assert_eq!(policy["norm"]["limits"][0]["hook"], "model.layers.1.post_attention_layernorm#in");

    let (_, said) = work.succeed(SAVE, &[("RUN_ID", "b"), ("DROP_FIRST", "2")]);
    assert!(said.contains("the first 2 positions"), "{said}");
    assert!(said.contains("tokens without rows: 20 special, 20 first positions"), "{said}");

    let both = [("RUN_ID", "c"), ("DROP_FIRST", "2"), ("KEEP_BOS", "1")];
    let output = work.stage(SAVE).envs(both).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = work.stage(SAVE).envs([("RUN_ID", "b"), ("DROP_FIRST", "3")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_policies_no_shard_and_no_manifest_line_tells_of_them() {
    let work = Workload::new(20);
    work.succeed(SAVE, &[]);
    let text = fs_err::read_to_string(work.run("capture").join("manifest.jsonl")).unwrap();
    assert!(!text.contains("dropped") && !text.contains("saturated"), "{text}");
}

#[test]
fn a_norm_beyond_the_limit_in_any_hook_drops_the_token() {
    let work = Workload::new(40);
    let common = [("HOOK", "resid_mid,mlp_out")];
    let [all, _] = all_and_some(&work, &common, &[]);
    // Between two norms far apart, so that rounding to f16 decides nothing.
    let mut norms: Vec<f64> = all.iter().flat_map(|r| [r.norm(0), r.norm(1)]).collect();
    norms.sort_by(f64::total_cmp);
    let upper = &norms[norms.len() / 2..norms.len() - 5];
    let widest = upper.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap();
    let limit = (widest[0] + widest[1]) / 2.0;
    let [all, some] = all_and_some(&work, &common, &[("DROP_NORM_ABOVE", &limit.to_string())]);
    let fits = |r: &&Row| r.norm(0).max(r.norm(1)) <= limit;
    assert_rows(&some, all.iter().filter(|r| r.position > 0).filter(fits));
    let dropped = all.iter().filter(|r| r.position > 0 && !fits(r)).count() as u64;
    assert!(dropped > 0);
    assert_eq!(meta(&work, "some").totals.unwrap().dropped.norm, dropped);
    let lines = manifest::read(&work.run("some").join("manifest.jsonl")).unwrap();
    assert_eq!(lines.iter().map(|l| l.dropped.norm).sum::<u64>(), dropped);
}

#[test]
fn two_workers_agree_on_a_multiple_of_the_median() {
    let work = Workload::new(64);
    let relative = ("DROP_NORM_ABOVE", "1.1x");
    let [all, one] = all_and_some(&work, &[], &[relative]);
    let worker = |i| [("RUN_ID", "two"), ("WORKERS", "2"), ("WORKER", i), relative];
    work.succeed(SAVE, &worker("1"));
    work.succeed(SAVE, &worker("0"));
    assert_rows(&rows(&work, "two"), one.iter());
    let limits = |run: &str| meta(&work, run).policy.unwrap().norm.unwrap().limits;
    assert_eq!(limits("some"), limits("two"));
    let [ref found] = limits("some")[..] else { panic!("{:?}", limits("some")) };
    let first = all.iter().filter(|r| r.position > 0 && r.document < 16);
    let mut norms: Vec<f64> = first.map(|r| r.norm(0)).collect();
    norms.sort_by(f64::total_cmp);
    let median = norms[(norms.len() - 1) / 2];
    assert!((found.median_norm.unwrap() / median - 1.0).abs() < 1e-3);
    assert!((found.limit / (1.1 * median) - 1.0).abs() < 1e-3);
    let kept = |r: &Row| one.iter().any(|o| (o.document, o.position) == (r.document, r.position));
    let (mut below, mut above) = (0, 0);
    for row in all.iter().filter(|r| r.position > 0) {
        match row.norm(0) / found.limit {
            ratio if ratio < 0.999 => below += usize::from(kept(row)),
            ratio if ratio > 1.001 => above += usize::from(!kept(row)),
            _ => continue,
        }
        assert_eq!(kept(row), row.norm(0) < found.limit);
    }
    assert!(below > 0 && above > 0, "{below} {above}");
}

#[test]
fn values_beyond_f16_are_an_error_or_counted() {
    let work = Workload::new(40);
    let [all, _] = all_and_some(&work, &[], &[]);
    let kept: Vec<&Row> = all.iter().filter(|r| r.position > 0).collect();
    let largest = kept.iter().flat_map(|r| &r.hooks[0]).map(|x| x.to_f32().abs());
    let largest = largest.fold(0.0, f32::max);
    // Powers of two do not round; a quarter of the largest number just overflows.
    let scale = 2_f32.powi((65_504.0 / largest).log2().ceil() as i32 + 2);
    let scaled = [("RUN_ID", "scaled"), ("ACTIVATION_SCALE", &scale.to_string())];
    let output = work.stage(SAVE).envs(scaled).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", String::from_utf8_lossy(&output.stderr));

    let saturate = [scaled[1], ("F16_OVERFLOW", "saturate"), ("RUN_ID", "saturated")];
    let (_, said) = work.succeed(SAVE, &saturate);
    assert_eq!(said.matches("is stored as 65504").count(), 1, "{said}");
    let beyond = |x: &&half::f16| x.to_f32().abs() * scale >= 65_520.0;
    let elements = kept.iter().map(|r| r.hooks[0].iter().filter(beyond).count() as u64);
    let statistics = meta(&work, "saturated").hooks[0].statistics.unwrap();
    assert_eq!(statistics.saturated, elements.clone().sum::<u64>());
    assert_eq!(statistics.saturated_rows, elements.filter(|n| *n > 0).count() as u64);
    assert!(statistics.saturated_rows > 0 && statistics.max_abs == 65_504.0);
    for (row, plain) in rows(&work, "saturated").iter().zip(&kept) {
        for (x, plain) in row.hooks[0].iter().zip(&plain.hooks[0]).filter(|(_, p)| beyond(p)) {
            assert_eq!(x.to_f32(), 65_504.0_f32.copysign(plain.to_f32()));
        }
    }
}

#[test]
fn counts_survive_interruptions() {
    let work = Workload::new(3000);
    let policies = [
        ("DROP_FIRST", "2"),
        ("DROP_NORM_ABOVE", "1.1x"),
        ("F16_OVERFLOW", "saturate"),
        ("ACTIVATION_SCALE", "65536"),
    ];
    work.succeed(SAVE, &policies);
    let totals = meta(&work, "capture").totals.unwrap();
    let saturated = meta(&work, "capture").hooks[0].statistics.unwrap().saturated;
    assert!(totals.dropped.first > 0 && totals.dropped.norm > 0 && saturated > 0);
    let undisturbed = work.take();
    let manifest = work.run("capture").join("workers/0.jsonl");
    let mut unfinished = 0;
    for attempt in 1..=40 {
        let mut child = work.stage(SAVE).envs(policies).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 * attempt));
        // The child may have ended.
        let _gone = kill_process(Pid::from_child(&child), Signal::USR1);
        let done = child.wait().unwrap().success();
        let text = fs_err::read_to_string(&manifest).unwrap_or_default();
        unfinished += usize::from(!done && text.contains(r#""unfinished":true"#));
        if done && unfinished > 0 {
            return Contents::read(&work.store()).assert_same(&undisturbed, "interruptions");
        } else if done {
            fs_err::remove_dir_all(work.store()).unwrap();
        }
    }
    panic!("no attempt was interrupted and then finished");
}

/// A copy of the Llama checkpoint with one number of a weight replaced.
fn damaged(work: &Workload, weight: &str, number: f32) -> PathBuf {
    let copy = work.path("model");
    fs_err::create_dir_all(&copy).unwrap();
    let original = golden("llama_tied_rope3").join("model");
    for file in ["config.json", "tokenizer.json"] {
        fs_err::copy(original.join(file), copy.join(file)).unwrap();
    }
    let mut tensors = st::load(original.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensor = &tensors[weight];
    let mut values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[5] = number;
    let tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
    tensors.insert(weight.to_owned(), tensor);
    st::save(&tensors, copy.join("model.safetensors")).unwrap();
    copy
}

#[test]
fn a_model_that_is_not_finite_is_not_captured() {
    let work = Workload::new(10);
    for weight in ["self_attn.o_proj", "mlp.down_proj"] {
        for number in [f32::NAN, f32::INFINITY] {
            let model = damaged(&work, &format!("model.layers.1.{weight}.weight"), number);
            let mut stage = work.stage(SAVE);
            // Layer 0 is all that the capture would compute.
            stage.env("MODEL_ID", &model).env("LAYER_NUM", "0").arg("--verify-model");
            let output = stage.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(65), "{said}");
            assert!(said.contains("error: layer 1, hook `model.layers.1`: of "), "{said}");
            assert!(said.contains("hint: the checkpoint is damaged there"), "{said}");
            assert!(!work.store().exists(), "the capture began");
        }
    }
}

#[test]
fn verification_reports_perplexity_and_continuations() {
    let work = Workload::new(8);
    let (said, _) = succeed(work.stage(SAVE).args(["--verify-model", "--check"]));
    assert!(!work.store().exists());
    for hook in ["model.layers.0 ", "model.layers.1 ", "model.layers.2 ", "lm_head "] {
        assert!(said.lines().any(|l| l.starts_with(hook)), "{hook}: {said}");
    }
    assert_eq!(said.lines().filter(|l| l.starts_with("continuation \"")).count(), 3, "{said}");
    let line = said.lines().find(|l| l.starts_with("perplexity ")).unwrap();
    let word = |i: usize| line.split(' ').nth(i).unwrap().trim_start_matches('(').to_owned();
    let number = |i: usize| word(i).parse::<f64>().unwrap();

    let logits = [("HOOK", "logits"), ("KEEP_SPECIAL", "1")];
    work.succeed(SAVE, &logits);
    let (mut nats, mut tokens) = (0.0, 0);
    for pair in rows(&work, "capture").windows(2).filter(|w| w[0].document == w[1].document) {
        let scores: Vec<f64> = pair[0].hooks[0].iter().map(|x| x.to_f64()).collect();
        nats += scores.iter().map(|s| s.exp()).sum::<f64>().ln() - scores[pair[1].id as usize];
        tokens += 1;
    }
    assert_eq!(word(7), tokens.to_string(), "{line}");
    assert!((number(2) - nats / f64::from(tokens)).abs() < 1e-3, "{line}, expected {nats}");
    assert!((number(1) / (nats / f64::from(tokens)).exp() - 1.0).abs() < 1e-3, "{line}");
}

#[test]
fn verification_of_an_encoder_and_before_a_capture() {
    let work = Workload::new(8);
    let bert = golden("bert").join("model");
    let variables = [("MODEL_ID", bert.to_str().unwrap()), ("VERIFY_MODEL", "1")];
    let (said, _) = work.succeed(SAVE, &variables);
    assert!(said.contains("perplexity and continuations: none"), "{said}");
    assert!(meta(&work, "capture").totals.unwrap().rows > 0);
}

fn plan(work: &Workload, variables: Variables<'_>) -> String {
    succeed(work.stage(SAVE).envs(variables.iter().copied()).arg("--check")).0
}

fn line<'a>(plan: &'a str, name: &str) -> &'a str {
    plan.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{plan}"))
}

fn size(dir: &Path) -> u64 {
    let entries = fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| if p.is_dir() { size(&p) } else { p.metadata().unwrap().len() }).sum()
}

#[test]
fn the_disk_that_a_check_names_is_what_a_capture_takes() {
    let work = Workload::new(300);
    let variables = [("LAYERS", "0-2:2"), ("HOOK", "resid_* mlp_act"), ("DROP_FIRST", "4")];
    let said = plan(&work, &variables);
    let words: Vec<&str> = line(&said, "disk").split_whitespace().collect();
    let unit = if words[3] == "MiB" { 1 << 20 } else { 1 << 10 };
    let estimate = words[2].parse::<f64>().unwrap() * f64::from(unit);
    work.succeed(SAVE, &variables);
    let hooks = meta(&work, "capture").hooks;
    assert_eq!(hooks.len(), 8);
    let folders = hooks.iter().map(|h| h.directory.as_str()).chain(["tokens"]);
    let taken: u64 = folders.map(|f| size(&work.run("capture").join(f))).sum();
    assert!((estimate / taken as f64 - 1.0).abs() < 0.05, "{estimate} for {taken}: {said}");
    let shards = meta(&work, "capture").totals.unwrap().shards;
    assert!(
        line(&said, "files").ends_with(&format!("{}: {shards} shards of 9", shards * 9)),
        "{said}"
    );
}

/// A folder with a program that prints `answer`, to be `PATH`.
fn program(work: &Workload, name: &str, answer: &str) -> String {
    let folder = work.path("bin");
    fs_err::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs_err::write(&path, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_check_compares_with_the_quota() {
    let work = Workload::new(100);
    assert!(line(&plan(&work, &[]), "free").ends_with(": ok"));
    assert!(line(&plan(&work, &[]), "quota").contains("none that quota or lfs quota knows of"));
    let room = program(&work, "lfs", "/lustre 100 0 100000000 - 1 0 0 -");
    let said = plan(&work, &[("PATH", &room)]);
    assert!(line(&said, "quota").ends_with("on /lustre: ok"), "{said}");
    let path = program(&work, "lfs", "/lustre 100* 0 200 - 1 0 0 -");
    let output = work.stage(SAVE).env("PATH", path).arg("--check").output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert_eq!(output.status.code(), Some(69), "{err}");
    assert!(
        line(&out, "quota").ends_with("100.0 KiB left of 200.0 KiB on /lustre: TOO SMALL"),
        "{out}"
    );
    assert!(
        err.contains("the quota leaves 100.0 KiB") && err.contains("hint: free space"),
        "{err}"
    );
}

#[test]
fn a_check_compares_with_the_wall_time() {
    let work = Workload::new(60_000);
    let limit = |variables: Variables<'_>| {
        let deep = [("DATA_LIMIT", "0"), ("LAYER_NUM", "2")];
        let said = plan(&work, &[&deep, variables].concat());
        assert!(line(&said, "time").contains("tokens/s measured here"), "{said}");
        line(&said, "time limit").to_owned()
    };
    assert!(limit(&[]).contains("unknown outside a job"));
    assert!(limit(&[("TIME_LIMIT", "10-00:00:00")]).ends_with(" 240:00:00: ok"));
    let short = limit(&[("TIME_LIMIT", "0:01")]);
    assert!(
        short.contains(" 0:00:01: TOO SMALL, each worker will be queued again about "),
        "{short}"
    );
    assert!(limit(&[("SLURM_JOB_END_TIME", "99999999999")]).ends_with(": ok"));
    let path = program(&work, "squeue", "1-00:00:00");
    assert!(limit(&[("SLURM_JOB_ID", "7"), ("PATH", &path)]).ends_with(" 24:00:00: ok"));
    let wrong = work.stage(SAVE).env("TIME_LIMIT", "soon").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn patterns_and_ranges_choose_hooks() {
    let work = Workload::new(4);
    let hooks = |variables: Variables<'_>| {
        let said = plan(&work, variables);
        line(&said, "hooks")
            .split_whitespace()
            .skip(1)
            .map(|w| w.trim_matches(',').to_owned())
            .collect::<Vec<_>>()
    };
    let ends = |l: usize| format!("model.layers.{l}");
    assert_eq!(hooks(&[("HOOK", "blocks.*.hook_resid_post")]), [ends(0), ends(1), ends(2)]);
    let every = [("HOOK", "*_resid_post"), ("LAYERS", "0-2:2")];
    assert_eq!(hooks(&every), [ends(0), ends(2)]);
    assert_eq!(hooks(&[("HOOK", "resid_post"), ("LAYERS", "all")]).len(), 3);
    assert_eq!(hooks(&[("HOOK", "llamaforcausallm_model_layers_[01]_mlp")]).len(), 2);
    let refused = |variables: Variables<'_>, words: &str| {
        let mut stage: Command = work.stage(SAVE);
        let output = stage.envs(variables.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused(&[("HOOK", "blocks.*.hook_mlp_uot")], "blocks.0.hook_mlp_out");
    refused(&[("HOOK", "resid_*"), ("LAYERS", "0-3")], "layer 3 does not exist");
    refused(&[("LAYERS", "2-0")], "environment variable LAYERS");
}
