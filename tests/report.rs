//! Stage 03 through its command line on a small planted run, and its report in a real browser.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pipeline_common::{
    capture::{
        CaptureMeta,
        meta::{HookRecord, Totals},
    },
    model::ModelRecord,
    sae::{
        Activation, Parameters, Sae,
        formats::saelens::{self, About},
        history::{Record, Validation},
        parameters::Shape,
        train::TrainingMeta,
    },
    shard::{
        ActivationWriter, Committed, Dropped, Tokens, manifest, reader::MANIFEST, tokens::Token,
    },
    stage::{ResolvedConfig, atomic},
    text::DatasetRecord,
    top::{
        TopData,
        record::LatentRecord,
        signature::{Shingles, signature},
    },
};

const D_IN: usize = 8;
const D_SAE: usize = 10;
const HOOK: &str = "model.layers.0";

/// Words, the latent each excites and how much; `<b>` must not become markup.
const WORDS: [(&str, Option<(u32, f32)>); 9] = [
    ("red", Some((0, 2.0))),
    ("scarlet", Some((0, 1.5))),
    ("fox", Some((1, 4.0))),
    ("żółw", Some((1, 0.5))),
    ("<b>bold</b>", Some((2, 1.0))),
    ("runs", Some((3, 0.25))),
    ("the", None),
    ("over", None),
    ("hill", Some((9, 3.0))),
];

struct Planted {
    store: tempfile::TempDir,
    /// Sentences as word numbers.
    sentences: Vec<Vec<usize>>,
}

impl Planted {
    fn new() -> Self {
        let sentence =
            |i: usize| (0..2 + i % 5).map(|w| (i * i + 3 * w + i * w * w) % WORDS.len()).collect();
        let planted = Self {
            store: tempfile::tempdir().unwrap(),
            sentences: (0..60).map(sentence).collect(),
        };
        planted.capture();
        planted.training();
        planted
    }

    fn run_dir(&self, run: &str) -> PathBuf {
        self.store.path().join("runs").join(run)
    }

    fn capture(&self) {
        let dir = self.run_dir("cap");
        for folder in ["h", "tokens"] {
            fs_err::create_dir_all(dir.join(folder)).unwrap();
        }
        // Unequal shards, so that sentence numbers cross a border.
        let (first, second) = self.sentences.split_at(23);
        self.shard(&dir, 0, 0, first);
        self.shard(&dir, 1, 23, second);
        let rows = self.sentences.iter().map(Vec::len).sum::<usize>() as u64;
        let meta = CaptureMeta {
            schema: 1,
            run_id: "cap".into(),
            model: ModelRecord {
                id: "tiny/model".into(),
                revision: "local".into(),
                architecture: "Tiny".into(),
                tokenizer: "0".into(),
            },
            hooks: vec![HookRecord {
                name: HOOK.into(),
                transformer_lens: "blocks.0".into(),
                alias: None,
                directory: "h".into(),
                d_in: D_IN,
                statistics: None,
            }],
            dataset: DatasetRecord {
                source: "planted".into(),
                revision: None,
                documents: 60,
                fingerprint: "0".into(),
            },
            workers: 1,
            activation_scale: 1.0,
            policy: None,
            config: ResolvedConfig::default(),
            totals: Some(Totals {
                shards: 2,
                sentences: 60,
                rows,
                tokens_seen: rows,
                ..Totals::default()
            }),
        };
        meta.write(&dir).unwrap();
    }

    fn shard(&self, dir: &Path, n: usize, first: usize, sentences: &[Vec<usize>]) {
        let (mut tokens, mut data) = (Tokens::new(), Vec::new());
        for (i, words) in sentences.iter().enumerate() {
            let text = words.iter().map(|w| WORDS[*w].0).collect::<Vec<_>>().join(" ");
            let mut begin = 0;
            let kept: Vec<Token> = words
                .iter()
                .enumerate()
                .map(|(position, w)| {
                    let end = begin + WORDS[*w].0.len();
                    let offset = [begin as u32, end as u32];
                    begin = end + 1;
                    Token { id: *w as u32, position: position as u32, offset }
                })
                .collect();
            for w in words {
                let mut row = [0.0_f32; D_IN];
                if let Some((latent, value)) = WORDS[*w].1 {
                    row[latent as usize % D_IN] = value;
                }
                data.extend(row);
            }
            tokens.push((first + i) as u64, &text, kept);
        }
        let name = format!("shard-0-{n}.safetensors");
        let mut writer =
            ActivationWriter::create(&dir.join("h").join(&name), HOOK, D_IN, 1.0, vec![]).unwrap();
        writer.append(&mut data).unwrap();
        let hook = writer.finish(&dir.join("h").join(&name), dir).unwrap();
        let committed = Committed {
            worker: 0,
            shard: n,
            unfinished: false,
            recapture: false,
            first_document: first as u64,
            end_document: (first + sentences.len()) as u64,
            sentences: sentences.len() as u64,
            rows: tokens.rows() as u64,
            tokens_seen: tokens.rows() as u64,
            dropped: Dropped::default(),
            tokens: tokens.write(&dir.join("tokens").join(&name), dir, &vec![]).unwrap(),
            hooks: vec![hook],
        };
        manifest::append(&dir.join(MANIFEST), &committed).unwrap();
    }

    /// An SAE whose latent `l` reads element `l % D_IN`; two read the same, one reads nothing.
    fn training(&self) {
        let dir = self.run_dir("sae");
        fs_err::create_dir_all(&dir).unwrap();
        let mut params = Parameters::zeros(Shape::autoencoder(D_IN, D_SAE));
        for latent in (0..D_SAE).filter(|l| *l != 8) {
            params.w_enc[latent * D_IN + latent % D_IN] = 1.0;
            params.w_dec[latent * D_IN + latent % D_IN] = 1.0;
        }
        let sae = Sae::new(params, Activation::Relu);
        saelens::save(&dir, &sae, About { frequency: vec![0.0; D_SAE], ..About::default() })
            .unwrap();
        let record = |step: u64| Record {
            step,
            mse: 1.0 / (step + 1) as f64,
            lr: 1e-3,
            ..Record::default()
        };
        atomic::write_json(&dir.join("history.json"), &(0..40).map(record).collect::<Vec<_>>())
            .unwrap();
        let meta = TrainingMeta {
            schema: 1,
            run_id: "sae".into(),
            capture_run_id: "cap".into(),
            hook: HOOK.into(),
            target_hook: None,
            d_in: D_IN,
            d_sae: D_SAE,
            steps: 40,
            tokens: 400,
            input_scale: 1.0,
            validation: Validation { rows: 1, mse: 0.1, fvu: 0.25, l0: 1.0 },
            config: ResolvedConfig::default(),
        };
        atomic::write_json(&dir.join("meta.json"), &meta).unwrap();
        fs_err::write(self.store.path().join("sae_run_id.txt"), "sae\n").unwrap();
    }

    fn stage(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_03_top_sentences"));
        command.env("STORE_DIR", self.store.path()).args(arguments).output().unwrap()
    }

    fn output(&self, file: &str) -> PathBuf {
        self.run_dir("sae").join("top_sentences").join(file)
    }

    /// Activations of a latent on each sentence, from the words alone.
    fn activations(&self, latent: u32) -> Vec<Vec<f32>> {
        let reads = |w: &usize| match WORDS[*w].1 {
            Some((wanted, value))
                if latent != 8 && wanted % D_IN as u32 == latent % D_IN as u32 =>
            {
                value
            }
            _ => 0.0,
        };
        self.sentences.iter().map(|s| s.iter().map(reads).collect()).collect()
    }

    /// The best sentences of a latent under an aggregation, by sorting everything; of near-duplicates the
    /// best one.
    fn expected(&self, latent: u32, of: impl Fn(&[f32]) -> f32, n: usize) -> Vec<(f32, u64)> {
        let scored = self
            .activations(latent)
            .iter()
            .enumerate()
            .map(|(i, a)| (of(a), i as u64))
            .collect::<Vec<_>>();
        let mut scored: Vec<_> = scored.into_iter().filter(|(v, _)| *v > 0.0).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let ids = |sentence: u64| -> Vec<u32> {
            self.sentences[sentence as usize].iter().map(|w| *w as u32).collect()
        };
        let mut signatures = BTreeSet::new();
        scored.retain(|(_, s)| signatures.insert(signature(&ids(*s))));
        let mut kept: Vec<(f32, u64)> = vec![];
        for (value, sentence) in scored {
            let new = Shingles::of(&ids(sentence));
            if !kept.iter().any(|(_, old)| Shingles::of(&ids(*old)).resemble(&new)) {
                kept.push((value, sentence));
            }
        }
        kept.truncate(n);
        kept
    }

    fn latents(&self) -> Vec<LatentRecord> {
        let data = TopData::open(&self.output("")).unwrap();
        (0..data.d_sae()).map(|latent| data.latent(latent).unwrap()).collect()
    }

    /// All results, by name.
    fn results(&self) -> BTreeMap<String, Vec<u8>> {
        let files = fs_err::read_dir(self.output("")).unwrap().map(|entry| entry.unwrap());
        let named = |f: fs_err::DirEntry| f.file_name().into_string().unwrap();
        files.map(|f| (f.path(), named(f))).map(|(p, n)| (n, fs_err::read(p).unwrap())).collect()
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_files_hold_what_sorting_all_sentences_gives() {
    let planted = Planted::new();
    succeeded(&planted.stage(&["--top-n", "7"]));
    type Of = fn(&[f32]) -> f32;
    let aggregations: [(&str, Of); 3] = [
        ("mean", |a| a.iter().sum::<f32>() / a.len() as f32),
        ("max", |a| a.iter().copied().fold(0.0, f32::max)),
        ("last", |a| a[a.len() - 1]),
    ];
    for (name, of) in aggregations {
        let text =
            fs_err::read_to_string(planted.output(&format!("top_sentences_{name}.yaml"))).unwrap();
        let yaml: BTreeMap<u32, Vec<serde_json::Value>> = serde_yaml::from_str(&text).unwrap();
        let pair = |e: &serde_json::Value| {
            (e["value"].as_f64().unwrap() as f32, e["sentence"].as_u64().unwrap())
        };
        for latent in 0..D_SAE as u32 {
            let expected = planted.expected(latent, of, 7);
            let found = yaml.get(&latent).map_or(&[][..], Vec::as_slice);
            let pairs: Vec<(f32, u64)> = found.iter().map(pair).collect();
            assert_eq!(pairs, expected, "{name} of latent {latent}");
            for entry in found {
                assert_eq!(entry["document"], entry["sentence"]);
                let first = WORDS[planted.sentences[pair(entry).1 as usize][0]].0;
                assert!(entry["text"].as_str().unwrap().starts_with(first), "{entry}");
            }
        }
    }
    let latents = planted.latents();
    let data = TopData::open(&planted.output("")).unwrap();
    let rows: usize = planted.sentences.iter().map(Vec::len).sum();
    for (latent, record) in latents.iter().enumerate() {
        let activations = planted.activations(latent as u32);
        let active = || activations.iter().flatten().filter(|a| **a > 0.0);
        assert_eq!(record.latent as usize, latent);
        assert_eq!(record.fired, active().count() as u64);
        assert_eq!(record.histogram.counts.iter().sum::<u64>(), record.fired);
        assert_eq!(record.max, active().copied().fold(0.0, f32::max));
        assert!((record.density - record.fired as f64 / rows as f64).abs() < 1e-12);
        let mean = active().map(|a| f64::from(*a)).sum::<f64>() / rows as f64;
        assert!((record.weighted - mean).abs() < 1e-9);
        for (sentence, found) in &record.activations {
            let mut dense = vec![0.0; activations[*sentence as usize].len()];
            found.at.iter().zip(&found.value).for_each(|(at, v)| dense[*at as usize] = *v);
            assert_eq!(dense, activations[*sentence as usize]);
            let words: Vec<&str> =
                planted.sentences[*sentence as usize].iter().map(|w| WORDS[*w].0).collect();
            let read = data.named(*sentence).unwrap();
            assert_eq!((read.tokens.concat(), read.document), (words.join(" "), *sentence));
            assert_eq!((read.tokens.len(), read.ids.len()), (words.len(), words.len()));
        }
    }
    assert_eq!(latents.len(), D_SAE);
}

#[test]
fn samples_show_what_the_best_do_not() {
    let planted = Planted::new();
    succeeded(&planted.stage(&["--top-n", "3"]));
    let latents = planted.latents();
    for record in &latents {
        let activations = planted.activations(record.latent);
        let largest = |s: u64| activations[s as usize].iter().copied().fold(0.0, f32::max);
        let drawn = record.deciles.concat();
        let distinct: BTreeSet<u64> = drawn.iter().map(|r| r.sentence).collect();
        assert_eq!(distinct.len(), drawn.len());
        assert!(drawn.iter().chain(&record.importance).all(|r| r.value == largest(r.sentence)));
        assert!(drawn.is_sorted_by(|a, b| a.value <= b.value));
        let active = (0..60).filter(|s| largest(*s) > 0.0).count();
        assert!(record.deciles.len() == 10 || active < 20, "{record:?}");
        assert_eq!(record.importance.is_empty(), active == 0);
        assert!(!record.silent.is_empty() && record.silent.iter().all(|s| largest(*s) == 0.0));
        for contrast in &record.contrast {
            let theirs = &planted.activations(contrast.latent)[contrast.sentence as usize];
            assert!(largest(contrast.sentence) == 0.0 && theirs.iter().any(|a| *a > 0.0));
        }
        assert_eq!(record.logits, None, "the model is nowhere");
    }
    // Both read the same element, and write to it.
    let [first, second] = [&latents[1], &latents[9]];
    for (found, other) in [(&first.neighbours, 9), (&second.neighbours, 1)] {
        assert_eq!((found[0].latent, found[0].cosine), (other, 1.0));
    }
    assert_eq!((first.coactive[0].latent, second.coactive[0].latent), (9, 1));
    assert!((first.coactive[0].cosine - 1.0).abs() < 0.1, "{:?}", first.coactive);
    assert!(latents[8].activations.is_empty() && latents[8].coactive.is_empty());
}

#[test]
fn the_result_is_the_same_on_any_number_of_threads_and_leaves_no_partial_file() {
    let [one, two] = ["1", "2"].map(|threads| {
        let planted = Planted::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_03_top_sentences"));
        let command =
            command.env("STORE_DIR", planted.store.path()).env("RAYON_NUM_THREADS", threads);
        succeeded(&command.output().unwrap());
        planted.results()
    });
    assert_eq!(one, two);
    let files = [
        "latents.jsonl",
        "report.html",
        "sentences.jsonl",
        "table.safetensors",
        "top_sentences_last.yaml",
        "top_sentences_max.yaml",
        "top_sentences_mean.yaml",
    ];
    assert_eq!(one.keys().collect::<Vec<_>>(), files);
}

#[test]
fn jobs_of_an_array_leave_what_one_job_leaves() {
    let (alone, shared) = (Planted::new(), Planted::new());
    succeeded(&alone.stage(&[]));
    let job = |index: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_03_top_sentences"));
        command.env("STORE_DIR", shared.store.path());
        let array = [("ID", index), ("COUNT", 3), ("MIN", 0), ("MAX", 2)];
        for (name, value) in array {
            command.env(format!("SLURM_ARRAY_TASK_{name}"), value.to_string());
        }
        command.output().unwrap()
    };
    // Two shards: one of the three has nothing to read.
    for index in [2, 0] {
        let output = job(index);
        assert_eq!(succeeded(&output), "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("this job's part is done"), "{said}");
        let report = shared.output("report.html");
        assert!(!report.exists());
    }
    // A part that is there is not made again, even after a damage that only a new pass would mend.
    let parts = shared.output("parts");
    let before = fs_err::read(parts.join("0-of-3.safetensors")).unwrap();
    succeeded(&job(0));
    assert_eq!(fs_err::read(parts.join("0-of-3.safetensors")).unwrap(), before);
    let printed = succeeded(&job(1));
    assert_eq!(printed.trim(), shared.output("report.html").to_str().unwrap());
    assert_eq!(shared.results(), alone.results());
    // A job that is queued again afterwards finds nothing to do.
    let table =
        || fs_err::metadata(shared.output("table.safetensors")).unwrap().modified().unwrap();
    let written = table();
    assert_eq!(succeeded(&job(2)), printed);
    assert_eq!(table(), written);
    assert!(!parts.exists());
}

#[test]
fn other_settings_make_the_results_anew() {
    let planted = Planted::new();
    succeeded(&planted.stage(&["--top-n", "2"]));
    let first = planted.results();
    succeeded(&planted.stage(&["--top-n", "2", "--seed", "5"]));
    let second = planted.results();
    assert_eq!(first["top_sentences_max.yaml"], second["top_sentences_max.yaml"]);
    assert_ne!(first["latents.jsonl"], second["latents.jsonl"]);
    succeeded(&planted.stage(&["--top-n", "4"]));
    assert_eq!(planted.latents()[0].top.max.len(), 4);
    // What a killed process left of the replacement is not taken for a result.
    fs_err::remove_file(planted.output("report.html")).unwrap();
    succeeded(&planted.stage(&["--top-n", "4"]));
    assert!(planted.output("report.html").is_file());
}

#[test]
fn check_estimates_and_wrong_runs_are_named() {
    let planted = Planted::new();
    let said = succeeded(&planted.stage(&["--check"]));
    assert!(said.contains("capture     cap") && said.contains("60 sentences"), "{said}");
    assert!(!planted.output("").exists());
    for (arguments, code, expected) in [
        (["--sae-run-id", "gone"], 2, "SAE_RUN_ID names run `gone`"),
        (["--run-id", "gone"], 2, "RUN_ID names run `gone`"),
        (["--run-id", "sae"], 65, "sae"),
        (["--top-n", "0"], 2, "--top-n"),
    ] {
        let output = planted.stage(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{said}");
    }
    fs_err::remove_file(planted.run_dir("sae").join("meta.json")).unwrap();
    assert_eq!(planted.stage(&[]).status.code(), Some(65));
}

/// What Chromium makes of the report, opened from disk with every host unresolvable.
fn browse(report: &Path, hash: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let url = format!("file://{}#{hash}", report.display());
    let arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=2000",
        "--dump-dom",
    ];
    for browser in ["chromium", "chromium-browser", "google-chrome"] {
        let mut command = Command::new(browser);
        command
            .args(arguments)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(&url);
        match command.output() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            output => return succeeded(&output.unwrap()),
        }
    }
    panic!("no Chromium found: install it, for instance with `apt-get install chromium`");
}

/// The latents whose cards are on the page, in order.
fn cards(dom: &str) -> Vec<u32> {
    dom.split("data-latent=\"")
        .skip(1)
        .map(|s| s.split('"').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn the_report_searches_sorts_and_shades_in_a_browser_without_a_network() {
    let planted = Planted::new();
    let printed = succeeded(&planted.stage(&[]));
    let report = planted.output("report.html");
    assert_eq!(printed.trim(), report.to_str().unwrap());

    let all = browse(&report, "");
    let mut active: Vec<u32> = (0..D_SAE as u32)
        .filter(|l| planted.activations(*l).iter().flatten().any(|a| *a > 0.0))
        .collect();
    let weight = |l: &u32| planted.activations(*l).iter().flatten().sum::<f32>();
    active.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
    assert_eq!(cards(&all), active);
    assert!(
        all.contains("<svg") && all.contains("density histogram of 5 active latents"),
        "no histogram"
    );
    assert!(all.contains("MSE by training step"), "no training curves");
    assert!(all.contains("tiny/model") && all.contains(HOOK), "no origin");
    assert!(all.contains("background: rgba(var(--shade), 0.80)"), "no shading");
    assert!(
        all.contains("&lt;b&gt;bold&lt;/b&gt;") && !all.contains("<b>bold"),
        "text became markup"
    );

    let found = browse(&report, "q=scarlet");
    assert!(found.contains("<mark>"), "no match is marked");
    let scarlet = 1;
    let has = |l: &u32| {
        let best = planted.expected(*l, |a| a.iter().copied().fold(0.0, f32::max), 10);
        best.iter().any(|(_, s)| planted.sentences[*s as usize].contains(&scarlet))
    };
    let mut expected: Vec<u32> = active.iter().copied().filter(has).collect();
    let mut got = cards(&found);
    expected.sort();
    got.sort();
    assert_eq!(got, expected);
    assert!(!expected.is_empty());
    assert_eq!(cards(&browse(&report, "q=no+such+words")), [0; 0]);
    assert_eq!(cards(&browse(&report, "latent=3")), [3]);
    assert_eq!(cards(&browse(&report, "latent=8")), [0; 0], "a dead latent has no card");
    let mut ascending = active.clone();
    ascending.sort();
    assert_eq!(cards(&browse(&report, "sort=id")), ascending);
}
