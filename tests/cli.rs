//! Configuration as users meet it: flags, variables, YAML, their precedence and their mistakes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clap::CommandFactory;
use pipeline_common::{
    capture::{CaptureMeta, SaveActivations},
    naming::NameLatents,
    plan::{DiscoverLayers, PlanRun},
    prepare::PrepareData,
    sae::{ConvertSae, EvaluateSae, TrainSae},
    stage::config::VARIABLES,
    status::PipelineStatus,
    top::TopSentences,
    verify::VerifyShards,
    web::Explore,
};

use super::workload::{
    CONVERT, Contents, DISCOVER, EVALUATE, EXPLORE, NAME, PLAN, PREPARE, SAVE, STATUS, TOP, TRAIN,
    VERIFY, Workload, sentences, succeed,
};

/// Variables and arguments that mean the same.
type Way<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// Those that a configuration is for; the others have settings of the moment alone.
const STAGES: [&str; 7] = [PREPARE, SAVE, TRAIN, TOP, NAME, DISCOVER, PLAN];

fn commands() -> [(&'static str, clap::Command); 12] {
    [
        (PREPARE, PrepareData::command()),
        (SAVE, SaveActivations::command()),
        (TRAIN, TrainSae::command()),
        (TOP, TopSentences::command()),
        (NAME, NameLatents::command()),
        (DISCOVER, DiscoverLayers::command()),
        (STATUS, PipelineStatus::command()),
        (VERIFY, VerifyShards::command()),
        (CONVERT, ConvertSae::command()),
        (EVALUATE, EvaluateSae::command()),
        (PLAN, PlanRun::command()),
        (EXPLORE, Explore::command()),
    ]
}

/// A stage with these variables and no others, in an empty directory of its own.
struct Terminal {
    dir: tempfile::TempDir,
}

impl Terminal {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs_err::write(&path, content).unwrap();
        path
    }

    fn stage(&self, binary: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.env_clear().envs(variables.iter().copied()).args(arguments);
        command.current_dir(self.dir.path());
        command
    }

    /// Value and origin of every setting, from `--print-config`.
    fn config(
        &self,
        binary: &str,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> BTreeMap<String, (String, String)> {
        let mut command = self.stage(binary, variables, arguments);
        let (table, _) = succeed(command.arg("--print-config"));
        let line = |line: &str| {
            let (name, rest) = line.split_once(' ').unwrap();
            let (value, origin) = rest.trim_start().split_once("  ").unwrap();
            (name.to_owned(), (value.to_owned(), origin.trim_start().to_owned()))
        };
        table.lines().map(line).collect()
    }

    /// What a stage says on standard error when it refuses with code 2.
    fn usage(&self, binary: &str, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.stage(binary, variables, arguments).output().unwrap();
        let said = error(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        said
    }
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn contains(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "`{words}` is missing from: {text}");
    }
}

#[test]
fn the_command_line_wins_over_the_environment_over_the_file_over_the_default() {
    let here = Terminal::new();
    here.file("c.yaml", "common:\n  top_k: 3\n  seed: 3\ntrain_sae:\n  top_k: 5\n  epochs: 6\n");
    let file = ("CONFIG", "c.yaml");
    let top_k = |variables: &[(&str, &str)], arguments: &[&str]| {
        here.config(TRAIN, variables, arguments)["TOP_K"].clone()
    };
    let is = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(top_k(&[], &[]), is("8", "default"));
    assert_eq!(top_k(&[file], &[]), is("5", "c.yaml"));
    assert_eq!(top_k(&[], &["--config", "c.yaml"]), is("5", "c.yaml"));
    assert_eq!(top_k(&[file, ("TOP_K", "6")], &[]), is("6", "environment"));
    assert_eq!(top_k(&[file, ("TOP_K", "6")], &["--top-k", "7"]), is("7", "command line"));
    assert_eq!(top_k(&[file, ("TOP_K", "6")], &["--top_k=7"]), is("7", "command line"));
    assert_eq!(top_k(&[file, ("TOP_K", "")], &[]), is("5", "c.yaml"));
    assert_eq!(top_k(&[("TOP_K", ""), ("CONFIG", "")], &[]), is("8", "default"));
    let whole = here.config(TRAIN, &[file, ("STORE_DIR", "s")], &["--lr", "0.5"]);
    assert_eq!(whole["SEED"], is("3", "c.yaml"));
    assert_eq!(whole["EPOCHS"], is("6", "c.yaml"));
    assert_eq!(whole["STORE_DIR"], is("s", "environment"));
    assert_eq!(whole["LR"], is("0.5", "command line"));
    assert_eq!(whole["WARMUP"], is("-", "default"));
}

#[test]
fn a_flag_is_one_flag_with_dashes_or_underscores() {
    let here = Terminal::new();
    for arguments in
        [&["--run_id", "a_b"][..], &["--run-id", "a_b"], &["--run_id=a_b"], &["--run-id=a_b"]]
    {
        let found = &here.config(SAVE, &[], arguments)["RUN_ID"];
        assert_eq!(found, &("a_b".to_owned(), "command line".to_owned()), "{arguments:?}");
    }
}

#[test]
fn misspelt_variables_are_noticed() {
    let here = Terminal::new();
    for (wrong, right) in [("TOPK", "TOP_K"), ("LAYER_NUMB", "LAYER_NUM"), ("MODLE_ID", "MODEL_ID")]
    {
        for stage in [SAVE, TRAIN] {
            let said = here.usage(stage, &[(wrong, "8")], &[]);
            contains(
                &said,
                &[wrong, &format!("did you mean `{right}`"), &format!("unset {wrong}")],
            );
        }
    }
    let output = here.stage(TRAIN, &[("STOR_DIRX", "x")], &["--print-config"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    contains(&error(&output), &["WARN", "`STOR_DIRX`", "did you mean `STORE_DIR`?"]);
    let cluster = [("SLURM_JOB_ID", "7"), ("LS_COLORS", "x"), ("HOSTNAME", "n1"), ("TERM", "vt")];
    let output = here.stage(TRAIN, &cluster, &["--print-config"]).output().unwrap();
    assert_eq!(error(&output), "");
}

#[test]
fn mistakes_in_a_file_are_named_with_their_place() {
    let here = Terminal::new();
    for (yaml, said) in [
        ("train_sea: {top_k: 3}", &["unknown section `train_sea`", "did you mean `train_sae`"][..]),
        ("train_sae: {topk: 3}", &["unknown key `train_sae.topk`", "did you mean `top_k`"]),
        ("common: {modle_id: x}", &["unknown key `common.modle_id`", "did you mean `model_id`"]),
        ("train_sae: {model_id: x}", &["unknown key `train_sae.model_id`"]),
        ("train_sae: {top_k: many}", &["'many'", "key `top_k` of `", "invalid digit"]),
        ("train_sae: {top_k: -1}", &["'-1'", "key `top_k` of `"]),
        ("train_sae: {sae_arch: lorsa}", &["'lorsa'", "topk, batchtopk, matryoshka, jumprelu"]),
        ("train_sae: {top_k: {a: b}}", &["`train_sae.top_k` must be a scalar or a list"]),
        ("train_sae: 7", &["train_sae", "expected a map"]),
        ("train_sae: [", &["line 1"]),
        ("- train_sae", &["invalid type"]),
    ] {
        let file = here.file("bad.yaml", yaml);
        let said_all = here.usage(TRAIN, &[("CONFIG", file.to_str().unwrap())], &[]);
        contains(&said_all, said);
        contains(&said_all, &["bad.yaml"]);
        assert!(!said_all.contains("')'"), "{said_all}");
    }
    here.file("good.yaml", "train_sae: {top_k: 3}");
    let bad = here.usage(TRAIN, &[("CONFIG", "good.yaml"), ("TOP_K", "x")], &[]);
    contains(&bad, &["'x'", "(environment variable TOP_K)"]);
    let bad = here.usage(TRAIN, &[("CONFIG", "good.yaml"), ("TOP_K", "3")], &["--top-k=x"]);
    assert!(!bad.contains("variable") && !bad.contains("good.yaml"), "{bad}");
    contains(&here.usage(TRAIN, &[("CONFIG", "gone.yaml")], &[]), &["gone.yaml", "CONFIG must"]);
    contains(&here.usage(TRAIN, &[], &["--topk", "3"]), &["--topk", "--top-k"]);
}

#[test]
fn every_flag_has_a_variable_of_its_name_and_help_shows_both_with_examples() {
    let here = Terminal::new();
    let mut all = BTreeSet::new();
    for (binary, command) in commands() {
        let (help, _) = succeed(&mut here.stage(binary, &[], &["--help"]));
        contains(&help, &["Examples:\n", "Usage: "]);
        // Undo the wrapping of long lines.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(succeed(&mut here.stage(binary, &[], &["-h"])).0.contains("Examples:"));
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            let variable = arg.get_env().and_then(|v| v.to_str()).unwrap_or_default();
            assert_eq!(variable, id.to_uppercase(), "{binary}");
            let flag = id.replace('_', "-");
            if !arg.is_positional() {
                assert_eq!(arg.get_long(), Some(&*flag), "{binary}");
                contains(&help, &[&format!("--{flag}")]);
            }
            contains(&help, &[&format!("[env: {variable}")]);
            assert!(arg.get_help().is_some(), "{binary}: {id} has no help");
            all.insert(variable.to_owned());
        }
    }
    assert_eq!(all, VARIABLES.iter().map(|v| (*v).to_owned()).collect());
}

#[test]
fn every_configuration_in_the_repository_suits_every_stage() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("configs")];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                found += 1;
                for stage in STAGES {
                    let here = Terminal::new();
                    let config = here.config(stage, &[("CONFIG", path.to_str().unwrap())], &[]);
                    let says = config.values().any(|(_, origin)| Path::new(origin) == path);
                    // Presets are about training alone.
                    assert!(says || stage != TRAIN, "{}", path.display());
                }
            }
        }
    }
    assert!(found > 10);
}

#[test]
fn the_token_is_never_shown_or_stored() {
    const TOKEN: &str = "hf_NobodyMaySeeThis";
    let work = Workload::new(20);
    let (store, log) = (work.store(), work.path("log.jsonl"));
    fs_err::write(work.path("c.yaml"), format!("common: {{hf_token: {TOKEN}}}")).unwrap();
    let ways: [Way<'_>; 3] = [
        (&[("HF_TOKEN", TOKEN)], &[]),
        (&[("HF_TOKEN", "")], &["--hf-token", TOKEN]),
        (&[("CONFIG", "c.yaml")], &[]),
    ];
    for (variables, arguments) in ways {
        for extra in [&["--print-config"][..], &["--help"], &["--check"], &[], &["--layer-num=9"]] {
            let mut stage = work.stage(SAVE);
            stage.envs(variables.iter().copied()).env("LOG_JSON", &log).env("LOG_LEVEL", "trace");
            let output = stage.args(arguments).args(extra).output().unwrap();
            for bytes in [&output.stdout, &output.stderr] {
                let said = String::from_utf8_lossy(bytes);
                assert!(!said.contains(TOKEN), "{extra:?}: {said}");
            }
        }
        let stored = Contents::read(&store);
        assert!(stored.names().any(|name| name.ends_with("meta.json")));
        for name in stored.names().map(|n| store.join(n)).chain([log.clone()]) {
            let bytes = fs_err::read(&name).unwrap();
            let shown = bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes());
            assert!(!shown, "{} holds the token", name.display());
        }
        fs_err::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn a_check_writes_nothing() {
    let work = Workload::new(60);
    let check = |stage: &str, variables: &[(&str, &str)]| {
        succeed(work.stage(stage).envs(variables.iter().copied()).arg("--check")).0
    };
    contains(&check(SAVE, &[]), &["capture", "60", "disk", "time"]);
    contains(&check(DISCOVER, &[]), &["LlamaForCausalLM"]);
    assert!(!work.store().exists());
    work.succeed(SAVE, &[]);
    let files = || {
        let store = Contents::read(&work.store());
        let names: Vec<PathBuf> = store.names().map(Path::to_owned).collect();
        (store, names)
    };
    let (before, names) = files();
    contains(&check(TRAIN, &[]), &["training", "d_sae 256", "steps", "memory", "disk"]);
    contains(&check(SAVE, &[("RUN_ID", "other")]), &["other"]);
    assert_eq!(files().1, names);
    files().0.assert_same(&before, "checks");
    assert!(!work.run("training").exists() && !work.run("other").exists());
    work.succeed(TRAIN, &[]);
    let (before, _) = files();
    contains(&check(TOP, &[]), &["latents", "256", "memory"]);
    files().0.assert_same(&before, "a check");
    assert!(!work.run("training").join("top_sentences").exists());
}

#[test]
fn messages_go_to_a_file_as_json_lines() {
    let work = Workload::new(20);
    let log = work.path("logs/deep/log.jsonl");
    let file = [("LOG_JSON", log.to_str().unwrap())];
    work.succeed(SAVE, &file);
    work.succeed(TRAIN, &file);
    let output = work.stage(TRAIN).envs(file).env("RUN_ID", "gone").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(error(&output).matches("RUN_ID names run").count(), 1, "{}", error(&output));
    let text = fs_err::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
    let all = |level: &str| {
        let of_level = lines.iter().filter(|line| line["level"] == level);
        of_level.map(|line| line["fields"]["message"].to_string()).collect::<Vec<_>>().join("\n")
    };
    contains(&all("INFO"), &["run `capture` is complete", "trained `training`"]);
    contains(&all("ERROR"), &["RUN_ID names run `gone`", "hint: "]);

    let below = work.path("text.jsonl").join("log");
    let output = work.stage(TRAIN).env("LOG_JSON", &below).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    contains(
        &error(&output),
        &["error: LOG_JSON cannot be opened", "text.jsonl", "hint: set LOG_JSON"],
    );
}

#[test]
fn lists_are_written_with_commas_blanks_or_in_yaml() {
    let work = Workload::new(4);
    let file = |name: &str, yaml: &str| fs_err::write(work.path(name), yaml).unwrap();
    file("list.yaml", "save_activations: {layers: [0, 2], hook: [resid_pre, mlp_out]}");
    file("text.yaml", "save_activations: {layers: '0 2', hook: 'resid_pre,mlp_out'}");
    let ways: [Way<'_>; 6] = [
        (&[("LAYERS", "0 2"), ("HOOK", "resid_pre mlp_out")], &[]),
        (&[("LAYERS", "0,2"), ("HOOK", "resid_pre,mlp_out")], &[]),
        (&[("LAYERS", " 0, 2,"), ("HOOK", "resid_pre, mlp_out ")], &[]),
        (&[("CONFIG", "list.yaml")], &[]),
        (&[("CONFIG", "text.yaml")], &[]),
        (&[], &["--layers", "0", "--layers=2", "--hook", "resid_pre", "--hook=mlp_out"]),
    ];
    let mut seen = BTreeSet::new();
    for (variables, arguments) in ways {
        let mut stage = work.stage(SAVE);
        stage.env_remove("RUN_ID").envs(variables.iter().copied()).args(arguments);
        let (said, _) = succeed(stage.arg("--check"));
        // The run's name is made from the settings: equal lists are equal settings.
        let lines: Vec<&str> =
            said.lines().filter(|l| l.starts_with("run ") || l.starts_with("hooks ")).collect();
        contains(
            &said,
            &[
                "model.layers.0#in, ",
                "model.layers.0.mlp,",
                "model.layers.2#in, ",
                "model.layers.2.mlp\n",
            ],
        );
        seen.insert(lines.join("\n"));
    }
    assert_eq!(seen.len(), 1, "{seen:#?}");
    for wrong in ["0,x", ",", "0;2", "-1"] {
        let output = work.stage(SAVE).env("LAYERS", wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", error(&output));
        contains(&error(&output), &["environment variable LAYERS"]);
    }
}

#[test]
fn two_workers_write_what_one_does() {
    // Two streams of whole batches, so that the rows are the same to the last bit.
    let work = Workload::new(128);
    work.succeed(SAVE, &[("RUN_ID", "one")]);
    let pointer = work.store().join("run_id.txt");
    fs_err::remove_file(&pointer).unwrap();
    let worker = |i| [("RUN_ID", "two"), ("WORKERS", "2"), ("WORKER", i)];
    let (_, said) = work.succeed(SAVE, &worker("1"));
    contains(&said, &["documents 64..128 of 128", "others are not"]);
    assert!(!pointer.exists(), "published before the last worker");
    assert!(!work.run("two").join("manifest.jsonl").exists());
    work.succeed(SAVE, &worker("0"));
    assert_eq!(fs_err::read_to_string(&pointer).unwrap(), "two\n");
    let (one, two) = (sentences(&work.run("one")), sentences(&work.run("two")));
    assert_eq!(one.len(), 128);
    let documents: Vec<u64> = two.iter().map(|s| s.0).collect();
    assert_eq!(documents, (0..128).collect::<Vec<_>>());
    assert!(one == two, "other rows");
    let totals = |run: &str| CaptureMeta::read_complete(&work.run(run)).unwrap().totals.unwrap();
    assert_eq!(totals("one").rows, totals("two").rows);
    assert_eq!(totals("one").tokens_seen, totals("two").tokens_seen);
}
