//! The stage on a small planted capture: figures against plain loops, SAEs of other projects,
//! settings and files that do not fit.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::{Value, json};

use super::EvaluateSae;
use crate::{
    sae::{
        Activation, Sae,
        formats::saelens::{self, About},
        weights::tests::random_sae,
    },
    shard::{ShardSet, Tokens, reader::tests::write_shard, tokens::Token},
    slurm::SlurmEnv,
    stage::{Context, Failure, Kind, ResolvedConfig, Stage, StopFlag, atomic},
};

/// Width of the rows, that of the SAEs in `tests/golden/saes`.
const WIDTH: usize = 6;
/// What stored rows are multiplied by.
const SCALE: f32 = 0.5;
/// Documents in each of two shards: two sentences each, of 2 to 4 rows.
const DOCUMENTS: usize = 15;

struct Planted {
    dir: tempfile::TempDir,
}

impl Planted {
    /// A store with the capture `cap`.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let capture = dir.path().join("runs/cap");
        for shard in 0..2 {
            let mut tokens = Tokens::new();
            for document in 0..DOCUMENTS {
                for sentence in 0..2 {
                    let rows = 2 + (document + sentence) % 3;
                    let token = |i| Token { id: 0, position: i as u32, offset: [0, 1] };
                    let number = (shard * DOCUMENTS + document) as u64;
                    tokens.push(number, "s", (0..rows).map(token));
                }
            }
            let wave = |i: usize| (((i + 997 * shard) as f32) * 0.7).sin() * 2.0 + 0.25;
            let mut data: Vec<f32> = (0..tokens.rows() * WIDTH).map(wave).collect();
            write_shard(&capture, shard, &mut data, &tokens);
        }
        let meta = json!({
            "schema": 1, "run_id": "cap", "workers": 1, "activation_scale": SCALE, "config": {},
            "model": {"id": "m", "revision": "local", "architecture": "A", "tokenizer": "0"},
            "hooks": [{"name": "h", "transformer_lens": "h", "directory": "h", "d_in": WIDTH}],
            "dataset": {"source": "d", "documents": 2 * DOCUMENTS, "fingerprint": "0"},
            "totals": {"shards": 2, "sentences": 4 * DOCUMENTS, "rows": 1, "tokens_seen": 1},
        });
        atomic::write_json(&capture.join("meta.json"), &meta).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Saves an SAE as SAELens has it.
    fn save(&self, sae: &Sae) -> PathBuf {
        let path = self.path("sae");
        fs_err::create_dir_all(&path).unwrap();
        saelens::save(&path, sae, About::default()).unwrap();
        path
    }

    /// Rows in the model's units and their documents.
    fn rows(&self) -> Vec<(u64, Vec<f64>)> {
        let set = ShardSet::open(&self.path("runs/cap"), "h").unwrap();
        let mut all = vec![];
        for shard in 0..set.shards() {
            let tokens = set.tokens(shard).unwrap();
            for sentence in 0..tokens.sentences() {
                for row in tokens.sentence_rows(sentence) {
                    let row = set.row(set.first_row(shard) + row).iter();
                    let values = row.map(|x| f64::from(x.to_f32() / SCALE)).collect();
                    all.push((tokens.document(sentence), values));
                }
            }
        }
        all
    }

    fn stage(&self, arguments: &[&str]) -> Result<(), Failure> {
        self.stage_with(StopFlag::default(), arguments)
    }

    fn stage_with(&self, stop: StopFlag, arguments: &[&str]) -> Result<(), Failure> {
        let store = self.dir.path().to_str().unwrap();
        let all = ["x", "--store-dir", store, "--run-id", "cap"]
            .into_iter()
            .chain(arguments.iter().copied());
        let stage = EvaluateSae::try_parse_from(all).unwrap();
        let config = ResolvedConfig::default();
        stage.run(&Context { stop, config, slurm: SlurmEnv::default(), threads: 1 })
    }

    /// The report on an SAE.
    fn report(&self, sae: &Path, arguments: &[&str]) -> Value {
        let output = self.path("out.json");
        let (sae, out) = (sae.to_str().unwrap(), output.to_str().unwrap());
        let own = ["--sae-path", sae, "--output", out];
        self.stage(&own.iter().chain(arguments).copied().collect::<Vec<_>>()).unwrap();
        serde_json::from_slice(&fs_err::read(output).unwrap()).unwrap()
    }
}

/// Latents and reconstruction of a ReLU SAE, by plain loops.
fn plain(sae: &Sae, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let p = &sae.params;
    let at = |tensor: &[f32], i: usize| f64::from(tensor[i]);
    let mut latents = vec![];
    for l in 0..p.d_sae {
        let product = |i: usize| (x[i] - at(&p.b_dec, i)) * at(&p.w_enc, l * WIDTH + i);
        latents.push(((0..WIDTH).map(product).sum::<f64>() + at(&p.b_enc, l)).max(0.0));
    }
    let output = |i: usize| {
        let parts = latents.iter().enumerate().map(|(l, f)| f * at(&p.w_dec, l * WIDTH + i));
        parts.sum::<f64>() + at(&p.b_dec, i)
    };
    let out = (0..WIDTH).map(output).collect();
    (latents, out)
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1e-3), "{found}, {expected}");
}

#[test]
fn figures_are_those_of_plain_loops() {
    let planted = Planted::new();
    let mut sae = random_sae(WIDTH, 40, Activation::Relu);
    // One that never fires.
    sae.params.b_enc[7] = -1000.0;
    let report = planted.report(&planted.save(&sae), &["--validation", "1"]);
    let rows = planted.rows();
    let n = rows.len() as f64;
    let mean: Vec<f64> =
        (0..WIDTH).map(|i| rows.iter().map(|(_, x)| x[i]).sum::<f64>() / n).collect();
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let (mut error, mut distance, mut l1) = (0.0, 0.0, 0.0);
    let (mut counts, mut fired) = (vec![], vec![0_u64; 40]);
    for (_, x) in &rows {
        let (latents, out) = plain(&sae, x);
        error += apart(x, &out);
        distance += apart(x, &mean);
        l1 += latents.iter().sum::<f64>();
        counts.push(latents.iter().filter(|f| **f > 0.0).count());
        latents.iter().zip(&mut fired).for_each(|(f, n)| *n += u64::from(*f > 0.0));
    }
    let f = &report["figures"];
    assert_eq!((&f["rows"], &f["documents"]), (&json!(rows.len()), &json!(2 * DOCUMENTS)));
    near(&f["mse"], error / n);
    near(&f["fvu"], error / distance);
    near(&f["explained_variance"], 1.0 - error / distance);
    near(&f["l0"], counts.iter().sum::<usize>() as f64 / n);
    near(&f["l1"], l1 / n);
    counts.sort_unstable();
    near(&f["l0_quantiles"]["min"], counts[0] as f64);
    near(&f["l0_quantiles"]["p50"], counts[counts.len().div_ceil(2) - 1] as f64);
    near(&f["l0_quantiles"]["max"], counts[counts.len() - 1] as f64);
    let dead = fired.iter().filter(|n| **n == 0).count();
    assert!(dead >= 1 && f["dead"] == dead, "{dead} {f}");
    for bin in f["density"].as_array().unwrap() {
        let upper = bin["log10_up_to"].as_f64().unwrap();
        let expected = fired.iter().filter(|c| {
            let log = (**c as f64 / n).log10();
            **c > 0 && upper - 0.5 < log && log <= upper
        });
        assert_eq!(bin["latents"], expected.count(), "{bin}");
    }
    for (figure, interval) in [("fvu", "fvu_interval"), ("l0", "l0_interval")] {
        let [low, high] = [0, 1].map(|i| f[interval][i].as_f64().unwrap());
        let estimate = f[figure].as_f64().unwrap();
        assert!(low <= estimate && estimate <= high && low < high, "{low} {estimate} {high}");
    }
}

#[test]
fn saes_of_other_projects_are_evaluated() {
    let planted = Planted::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/saes");
    for (name, file, arguments) in [
        ("gemma_scope", "params.npz", &[][..]),
        ("dictionary_learning_gated", "", &[]),
        ("saelens_topk_layer_norm", "", &[]),
        ("openai_topk", "sae.pt", &[]),
        ("saint", "sae.pt", &["--top-k", "3"]),
        ("saint", "sae.pt", &["--top-k", "3", "--sae-from-format", "saint"]),
    ] {
        let folder = folder.join(name);
        let path = if file.is_empty() || !folder.join(file).exists() {
            let single = ["1.pt", "params.npz"].map(|f| folder.join(f));
            single.into_iter().find(|f| f.exists()).unwrap_or(folder)
        } else {
            folder.join(file)
        };
        let report = planted.report(&path, arguments);
        let f = &report["figures"];
        assert!(f["fvu"].as_f64().unwrap() > 0.0 && f["documents"] == 2 * DOCUMENTS, "{name} {f}");
        assert_eq!(report["subject"]["d_sae"], 10, "{name}");
        assert!(report["notes"].to_string().contains("no document is held out"), "{report}");
    }
}

#[test]
fn a_share_and_a_limit_take_whole_documents() {
    let planted = Planted::new();
    let sae = planted.save(&random_sae(WIDTH, 12, Activation::TopK { k: 3 }));
    let report = planted.report(&sae, &["--validation", "0.2"]);
    // The last three of each shard, as 02 holds them out.
    let last = |d: u64| d % DOCUMENTS as u64 >= DOCUMENTS as u64 - 3;
    let expected = planted.rows().iter().filter(|(d, _)| last(*d)).count();
    assert_eq!(report["figures"]["documents"], 6);
    assert_eq!(report["figures"]["rows"], expected);
    let report = planted.report(&sae, &["--validation", "1", "--rows", "20"]);
    let (rows, documents) = (&report["figures"]["rows"], &report["figures"]["documents"]);
    assert!(rows.as_u64().unwrap() <= 20 && documents.as_u64().unwrap() >= 2, "{report}");
    assert!(report["notes"].to_string().contains("drawn for ROWS"), "{report}");
    let report = planted.report(&sae, &["--validation", "1", "--rows", "1"]);
    assert_eq!(report["figures"]["fvu_interval"], Value::Null);
}

#[test]
fn what_does_not_fit_is_refused() {
    let planted = Planted::new();
    let refused = |sae: &Path, arguments: &[&str], kind: Kind, words: &str| {
        let own = ["--sae-path", sae.to_str().unwrap()];
        let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
        let failure = planted.stage(&all).unwrap_err();
        let said = failure.source.to_string();
        assert!(failure.kind == kind && said.contains(words), "{words}: {said}");
        assert!(kind == Kind::Input || failure.hint.is_some(), "{said}");
    };
    let narrow = planted.save(&random_sae(4, 12, Activation::Relu));
    refused(&narrow, &[], Kind::Usage, "is for width 4, hook `h` has 6");
    let mut sae = random_sae(WIDTH, 12, Activation::Relu);
    let fine = planted.save(&sae);
    refused(&fine, &["--sae-run-id", "x"], Kind::Usage, "are both set");
    refused(&fine, &["--hook", "other"], Kind::Usage, "HOOK is `other`");
    refused(&planted.path("gone"), &[], Kind::Usage, "does not exist");
    refused(&planted.path("runs"), &[], Kind::Input, "the format is none that is known");
    sae.params.w_dec[3] = f32::NAN;
    refused(&planted.save(&sae), &[], Kind::Input, "`W_dec` is NaN at 3");
    sae.params.w_dec.fill(3e38);
    refused(&planted.save(&sae), &[], Kind::Input, "the error is");
}

#[test]
fn a_stop_writes_nothing() {
    let planted = Planted::new();
    let sae = planted.save(&random_sae(WIDTH, 12, Activation::Relu));
    let stop = StopFlag::default();
    stop.request();
    let output = planted.path("out.json");
    let paths = [sae.to_str().unwrap(), output.to_str().unwrap()];
    let arguments = ["--sae-path", paths[0], "--output", paths[1]];
    let failure = planted.stage_with(stop, &arguments).unwrap_err();
    assert!(failure.kind == Kind::Stopped && !output.exists());
}
