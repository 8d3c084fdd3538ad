//! Stage 00 through its command line, and stage 01 on what it wrote.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use pipeline_common::{
    capture::CaptureMeta,
    prepare::{Prepared, record},
    text::{Streams, Tokenizer},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    hostile::{Refusal, refused},
    hub::{COMMIT, FakeHub, Store},
    workload::{Contents, PREPARE, SAVE, Workload, sentences, succeed},
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama_tied_rope3/model");
const TEMPLATE: &str = include_str!("prepare/chat_template.jinja");
const MESSAGES: &str = include_str!("prepare/messages.jsonl");

/// Settings of model and text, which a prepared run has already.
const INHERITED: [&str; 3] = ["MODEL_ID", "HF_DATASET", "MAX_LENGTH"];

/// Stage 01 on a prepared run, given nothing of model and text.
fn capture_prepared(work: &Workload, variables: &[(&str, &str)]) -> Command {
    let mut stage = work.stage(SAVE);
    for name in INHERITED {
        stage.env_remove(name);
    }
    stage.envs(variables.iter().copied());
    stage
}

fn streams(run_dir: &Path) -> Vec<Vec<String>> {
    let streams = Streams::load(run_dir).unwrap();
    let text = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    let read = |i: u64| {
        let file = run_dir.join("streams").join(format!("stream-{i}.jsonl"));
        fs_err::read_to_string(file).unwrap().lines().map(text).collect()
    };
    (0..streams.count).map(read).collect()
}

fn write_texts(path: &Path, texts: &[&str]) {
    let line = |text: &&str| format!("{}\n", serde_json::json!({ "text": text }));
    fs_err::write(path, texts.iter().map(line).collect::<String>()).unwrap();
}

/// A copy of the golden model with a chat template.
fn chat_model(work: &Workload, template: &str) -> PathBuf {
    let dir = work.path("model");
    fs_err::create_dir_all(&dir).unwrap();
    for entry in fs_err::read_dir(MODEL).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    fs_err::write(
        dir.join("tokenizer_config.json"),
        serde_json::json!({"bos_token": "<|begin_of_text|>", "chat_template": template})
            .to_string(),
    )
    .unwrap();
    dir
}

#[test]
fn one_stream_is_captured_as_the_dataset_would_be_and_without_it() {
    let work = Workload::new(60);
    work.succeed(SAVE, &[("RUN_ID", "alone")]);
    let (said, _) = work.succeed(PREPARE, &[]);
    let next = said.lines().find(|line| line.starts_with("next ")).unwrap();
    assert!(next.contains("RUN_ID=capture STORE_DIR=") && next.ends_with(" 01_save_activations"));
    fs_err::remove_file(work.path("text.jsonl")).unwrap();
    let (check, _) = succeed(capture_prepared(&work, &[]).arg("--check"));
    assert!(check.contains("60 in 1 streams"), "{check}");
    succeed(&mut capture_prepared(&work, &[]));
    let (alone, prepared) = (work.run("alone"), work.run("capture"));
    assert_eq!(sentences(&alone).len(), 60);
    assert!(sentences(&alone) == sentences(&prepared), "other rows");
    let meta = |run: &Path| CaptureMeta::read_complete(run).unwrap();
    assert_eq!(meta(&alone).dataset, meta(&prepared).dataset);
    let (mut inherited, given) = (meta(&prepared).config, meta(&alone).config);
    assert_eq!(inherited.0["hf_dataset"].origin, "prepared.json");
    // A capture alone leaves the number of workers to the cluster.
    inherited.0.insert("workers".into(), given.0["workers"].clone());
    assert_eq!(inherited.values(), given.values());
    let before = Contents::read(&work.store());
    succeed(&mut capture_prepared(&work, &[]));
    Contents::read(&work.store()).assert_same(&before, "a second start");
}

#[test]
fn three_streams_have_the_same_work_and_keep_the_documents_numbers() {
    let work = Workload::new(0);
    let long = "river stone ".repeat(60);
    let texts: Vec<String> = (0..90)
        .map(|i| if i < 30 { format!("{i} {long}") } else { format!("{i} short") })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    write_texts(&work.path("text.jsonl"), &texts);
    work.succeed(SAVE, &[("RUN_ID", "alone")]);
    let (said, _) = work.succeed(PREPARE, &[("WORKERS", "3")]);
    assert!(said.contains("sbatch --array=0-2 slurm/submit_save_activations.sh"), "{said}");
    let run = work.run("capture");
    let parts = streams(&run);
    assert_eq!(parts.concat(), texts);
    let weight = |part: &Vec<String>| part.iter().map(|t| t.len().min(4 * 64)).sum::<usize>();
    let weights: Vec<usize> = parts.iter().map(weight).collect();
    let mean = weights.iter().sum::<usize>() / 3;
    assert!(weights.iter().all(|w| w.abs_diff(mean) <= 256), "{weights:?}");
    assert!(parts[0].len() < 20 && parts[2].len() > 50, "by documents, not by work");

    let written = Prepared::read(&run).unwrap().unwrap().written.unwrap();
    assert_eq!((written.contexts, written.empty, written.streams.len()), (90, 0, 3));
    for stream in &written.streams {
        let bytes = fs_err::read(run.join(&stream.file.path)).unwrap();
        assert_eq!(stream.file.blake3, blake3::hash(&bytes).to_hex().to_string());
        assert_eq!(stream.file.bytes, bytes.len() as u64);
    }
    fs_err::remove_file(work.path("text.jsonl")).unwrap();
    for worker in ["2", "0", "1"] {
        succeed(&mut capture_prepared(&work, &[("WORKER", worker)]));
    }
    let tokens = |run: &str| -> Vec<_> {
        sentences(&work.run(run)).into_iter().map(|(d, text, ids, _)| (d, text, ids)).collect()
    };
    assert_eq!(tokens("capture").len(), 90);
    assert_eq!(tokens("capture"), tokens("alone"));
}

#[test]
fn a_second_start_changes_nothing_and_another_preparation_is_refused() {
    let work = Workload::new(40);
    let (check, _) = work.succeed(PREPARE, &[("CHECK", "1"), ("WORKERS", "3")]);
    for words in ["capture", "40, 0 of them empty", "3 of 1", "KiB"] {
        assert!(check.contains(words), "{check}");
    }
    assert!(!work.store().exists(), "a check wrote something");
    work.succeed(PREPARE, &[]);
    let before = Contents::read(&work.store());
    let (again, said) = work.succeed(PREPARE, &[]);
    assert!(said.contains("is prepared already") && again.contains("next "), "{said}{again}");
    let error = [
        "run `capture` was begun with other settings",
        "MAX_LENGTH: run has `64`, now `32`",
        "SPLIT: run has `document`, now `sentence`",
        "WORKERS: run has `1`, now `2`",
    ];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    let others = [("MAX_LENGTH", "32"), ("SPLIT", "sentence"), ("WORKERS", "2")];
    refused(work.stage(PREPARE).envs(others), &expected);
    refused(work.stage(SAVE).envs(others), &expected);
    let error = ["run `capture` was prepared from dataset", "documents: 40", "documents: 41"];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    let mut text = fs_err::read_to_string(work.path("text.jsonl")).unwrap();
    text.push_str("{\"text\": \"one more\"}\n");
    fs_err::write(work.path("text.jsonl"), text).unwrap();
    refused(&mut work.stage(PREPARE), &expected);
    Contents::read(&work.store()).assert_same(&before, "refusals");
}

/// Whatever stops it and whenever, the end is the same.
#[test]
fn an_interrupted_preparation_ends_with_the_same_files() {
    let work = Workload::new(20_000);
    let many = [("WORKERS", "12")];
    work.succeed(PREPARE, &many);
    let expected = work.take();
    let mut stopped = 0;
    for attempt in 0..40 {
        let mut stage = work.stage(PREPARE);
        let mut child =
            stage.envs(many).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 * attempt));
        let signal = if attempt % 3 == 2 { Signal::KILL } else { Signal::TERM };
        let _gone = kill_process(Pid::from_child(&child), signal);
        match child.wait().unwrap().code() {
            Some(0) => break,
            // A signal before the handlers are in place has none.
            code => assert!(matches!(code, Some(75) | None), "{code:?}"),
        }
        stopped += 1;
    }
    assert!(stopped > 1, "nothing was interrupted");
    work.succeed(PREPARE, &many);
    Contents::read(&work.store()).assert_same(&expected, "interruptions");
}

#[test]
fn each_sentence_is_a_context_of_its_document() {
    let work = Workload::new(0);
    let texts =
        ["The river walks. The stone waits!  A child?", "Winter.", "", "Red bread. Green song."];
    write_texts(&work.path("text.jsonl"), &texts);
    let split = [("SPLIT", "sentence"), ("BATCH_SIZE_SAVE", "2")];
    work.succeed(SAVE, &[("RUN_ID", "alone"), split[0], split[1]]);
    work.succeed(PREPARE, &split[..1]);
    succeed(&mut capture_prepared(&work, &split[1..]));
    let found = sentences(&work.run("capture"));
    let what: Vec<(u64, &str)> = found.iter().map(|s| (s.0, s.1.as_str())).collect();
    let expected = [
        (0, "The river walks."),
        (0, "The stone waits!"),
        (0, "A child?"),
        (1, "Winter."),
        (3, "Red bread."),
        (3, "Green song."),
    ];
    assert_eq!(what, expected);
    assert!(found == sentences(&work.run("alone")), "other rows than without 00");
    assert_eq!(streams(&work.run("capture")).concat(), texts);
    let report = fs_err::read_to_string(work.run("capture").join("tokenisation.txt")).unwrap();
    for words in [
        "6 sentences",
        "Document 0: 3 sentences",
        r#"text    "The stone waits!""#,
        "1 of 4 documents are empty",
    ] {
        assert!(report.contains(words), "`{words}` is missing from\n{report}");
    }
}

#[test]
fn conversations_are_rendered_once_and_get_no_second_bos() {
    let work = Workload::new(0);
    fs_err::write(work.path("text.jsonl"), MESSAGES).unwrap();
    let model = chat_model(&work, TEMPLATE);
    let chat = [
        ("PROMPT_TEMPLATE", "chat"),
        ("MODEL_ID", model.to_str().unwrap()),
        ("KEEP_SPECIAL", "1"),
        ("MAX_LENGTH", "256"),
    ];
    work.succeed(SAVE, &[&chat[..], &[("RUN_ID", "alone")]].concat());
    work.succeed(PREPARE, &chat);
    let run = work.run("capture");
    let texts = streams(&run).concat();
    assert_eq!(
        texts[0],
        "<|begin_of_text|>[USER] What crosses the river?<|eot_id|>[ASSISTANT] A stone bridge. It is old.<|eot_id|>"
    );
    succeed(&mut capture_prepared(&work, &[]));
    let found = sentences(&run);
    assert!(found == sentences(&work.run("alone")), "other rows than without 00");
    let tokenizer = Tokenizer::load(&model).unwrap();
    for (sentence, text) in found.iter().zip(&texts) {
        assert_eq!(&sentence.1, text);
        let pieces: Vec<String> =
            sentence.2.iter().map(|id| tokenizer.piece(*id).unwrap()).collect();
        let count = |piece: &str| pieces.iter().filter(|p| *p == piece).count();
        assert_eq!((count("<|begin_of_text|>"), pieces[0].as_str()), (1, "<|begin_of_text|>"));
        assert_eq!(count("<|eot_id|>"), text.matches("<|eot_id|>").count());
    }
    let record = Prepared::read(&run).unwrap().unwrap();
    assert_eq!(
        record.chat_template.unwrap(),
        blake3::hash(TEMPLATE.as_bytes()).to_hex().to_string()
    );
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let work = Workload::new(6);
    let model = chat_model(&work, "{{ raise_exception('Only the user speaks') }}");
    let model = model.to_str().unwrap();
    fs_err::write(work.path("chat.jsonl"), MESSAGES).unwrap();
    fs_err::write(work.path("turns.jsonl"), "{\"messages\": [{\"from\": \"gpt\"}]}\n").unwrap();
    write_texts(&work.path("empty.jsonl"), &["", " \n", "", "text"]);
    let small = work.path("small");
    fs_err::rename(work.path("model"), &small).unwrap();
    chat_model(&work, "{{ raise_exception('Only the user speaks') }}");
    let config = small.join("config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    fs_err::write(&config, text.replace("\"vocab_size\": 512", "\"vocab_size\": 500")).unwrap();
    let chat = ("PROMPT_TEMPLATE", "chat");
    type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a [&'a str], &'a str);
    let cases: [Case<'_>; 7] = [
        (&[("MODEL_ID", "small")], 65, &["512 tokens", "vocabulary is 500"], "another model"),
        (&[chat, ("HF_DATASET", "chat.jsonl")], 2, &["has no chat template"], "instruction-tuned"),
        (
            &[chat, ("HF_DATASET", "chat.jsonl"), ("MODEL_ID", model)],
            65,
            &["document 0", "fails: Only the user speaks"],
            "template",
        ),
        (
            &[chat, ("HF_DATASET", "turns.jsonl"), ("MODEL_ID", model)],
            65,
            &["document 0 is no list of messages", "message 0 has no `role`"],
            "TEXT_FIELD",
        ),
        (&[chat, ("MODEL_ID", model)], 2, &["no field `messages`", "`text`"], "TEXT_FIELD"),
        (&[("TEXT_FIELD", "story")], 2, &["no field `story`", "`text`"], "TEXT_FIELD=text"),
        (
            &[("HF_DATASET", "empty.jsonl")],
            65,
            &["3 of 4 sampled documents are empty"],
            "TEXT_FIELD",
        ),
    ];
    for (variables, code, error, hint) in cases {
        for check in ["0", "1"] {
            let mut stage = work.stage(PREPARE);
            let stage = stage.envs(variables.iter().copied()).env("CHECK", check);
            refused(stage, &Refusal { code, error, hint });
        }
        assert!(!work.run("capture").join("streams").exists(), "{error:?}");
        assert!(!work.run("capture").join("tokenisation.html").exists(), "{error:?}");
        let _absent = fs_err::remove_dir_all(work.store());
    }
}

#[test]
fn a_capture_trusts_no_stream_that_changed_and_no_half_of_a_preparation() {
    let work = Workload::new(30);
    work.succeed(PREPARE, &[("WORKERS", "2")]);
    let run = work.run("capture");
    let error = ["WORKERS: run has `2`, now `3`"];
    let expected = Refusal { code: 2, error: &error, hint: "RUN_ID a new name" };
    refused(work.stage(SAVE).env("WORKERS", "3"), &expected);

    let stream = run.join("streams/stream-1.jsonl");
    let good = fs_err::read(&stream).unwrap();
    let mut bad = good.clone();
    bad[20] ^= 1;
    for bytes in [&bad[..], &good[..good.len() - 1]] {
        fs_err::write(&stream, bytes).unwrap();
        let error = [stream.to_str().unwrap(), "has changed", "blake3"];
        let expected = Refusal { code: 65, error: &error, hint: "under a new RUN_ID" };
        refused(&mut capture_prepared(&work, &[("WORKER", "1")]), &expected);
    }
    // The other worker reads its own stream only.
    succeed(&mut capture_prepared(&work, &[("WORKER", "0")]));
    fs_err::write(&stream, &good).unwrap();
    succeed(&mut capture_prepared(&work, &[("WORKER", "1")]));

    let file = run.join(record::FILE);
    let mut record = Prepared::read(&run).unwrap().unwrap();
    record.written = None;
    record.write(&run).unwrap();
    let error = ["run `capture` is not prepared to the end"];
    let expected = Refusal { code: 65, error: &error, hint: "00_prepare_data again" };
    refused(&mut capture_prepared(&work, &[("WORKER", "0")]), &expected);
    fs_err::write(&file, "{").unwrap();
    let expected = Refusal { code: 65, error: &["prepared.json"], hint: "" };
    refused(&mut capture_prepared(&work, &[("WORKER", "0")]), &expected);
    fs_err::remove_file(&file).unwrap();
    let error = ["run `capture` was captured without being prepared"];
    let expected = Refusal { code: 2, error: &error, hint: "go on with 01_save_activations" };
    refused(&mut work.stage(PREPARE), &expected);
}

#[test]
fn model_and_dataset_are_fetched_once_and_the_capture_needs_no_network() {
    let model = fs_err::read_dir(MODEL).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs_err::read(path).unwrap())
    });
    let line = |i: u64| format!("{{\"text\": \"story {i} of the river\"}}\n");
    let lines = |range: std::ops::Range<u64>| -> Vec<u8> {
        range.flat_map(|i| line(i).into_bytes()).collect()
    };
    let dataset = [
        ("data/train-00000-of-00002.jsonl".to_owned(), lines(0..5)),
        ("data/train-00001-of-00002.jsonl".to_owned(), lines(5..9)),
    ];
    let repositories =
        [("models/tiny/llama", model.collect()), ("datasets/tiny/stories", dataset.into())];
    let hub = FakeHub::start(Store::of(repositories));
    let work = Workload::new(0);
    let (home, address) = (work.path("home"), hub.address().to_owned());
    let online = [
        ("MODEL_ID", "tiny/llama"),
        ("HF_DATASET", "tiny/stories"),
        ("HF_ENDPOINT", address.as_str()),
        ("HF_HOME", home.to_str().unwrap()),
    ];
    work.succeed(PREPARE, &online);
    let record = Prepared::read(&work.run("capture")).unwrap().unwrap();
    assert_eq!(record.model.revision, COMMIT);
    assert_eq!(record.dataset.revision.as_deref(), Some(COMMIT));
    assert_eq!(record.dataset.documents, 9);
    let error = ["dataset `tiny/stories` at `v2`"];
    let expected = Refusal { code: 2, error: &error, hint: "DATA_REVISION" };
    let other = [("DATA_REVISION", "v2"), ("RUN_ID", "other")];
    refused(work.stage(PREPARE).envs(online).envs(other), &expected);
    hub.stop();

    // The dataset is gone even from the cache.
    fs_err::remove_dir_all(home.join("hub/datasets--tiny--stories")).unwrap();
    let offline = [("HF_HUB_OFFLINE", "1"), online[3]];
    succeed(&mut capture_prepared(&work, &offline));
    let meta = CaptureMeta::read_complete(&work.run("capture")).unwrap();
    assert_eq!(meta.model.revision, COMMIT);
    assert_eq!(meta.dataset, record.dataset);
    assert_eq!(sentences(&work.run("capture")).len(), 9);
}

#[test]
fn the_report_shows_what_becomes_of_each_token() {
    let work = Workload::new(12);
    work.succeed(PREPARE, &[("REPORT_SAMPLE", "10"), ("DROP_FIRST", "3")]);
    let file = |name: &str| fs_err::read_to_string(work.run("capture").join(name)).unwrap();
    let text = file("tokenisation.txt");
    for words in [
        "ok       the tokenizer's 512 tokens fit the model's vocabulary of 512",
        "Figures of 10 sampled documents",
        "<- MAX_LENGTH",
        "<|begin_of_text|>",
        "special, no row",
        "first, no row",
        "cut off",
        "Document 0\n",
    ] {
        assert!(text.contains(words), "`{words}` is missing from\n{text}");
    }
    let page = file("tokenisation.html");
    assert_eq!(page.matches("<article>").count(), 8);
    assert!(page.contains("class=\"bar\"") && page.contains("<small>508</small>"));
    assert!(!page.contains("http://") && !page.contains("https://"), "no network");
    // What the report calls a row is one.
    succeed(&mut capture_prepared(&work, &[]));
    let meta = CaptureMeta::read_complete(&work.run("capture")).unwrap();
    assert_eq!(meta.totals.unwrap().dropped.first, 2 * 12);
    work.succeed(PREPARE, &[("RUN_ID", "all"), ("DROP_FIRST", "3")]);
    let all = fs_err::read_to_string(work.run("all").join("tokenisation.txt")).unwrap();
    let rows = format!("rows                   {} ", meta.totals.unwrap().rows);
    assert!(all.contains(&rows), "`{rows}` is missing from\n{all}");
}
