//! A store around the demo model, for tests: SAEs of random weights, and what stage 03 says of one.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::{browse::Library, catalog::Catalog, engine::Engine};
use crate::{
    capture::{
        CaptureMeta, CapturedModelArgs,
        meta::{HookRecord, Statistics, Totals},
    },
    model::ModelRecord,
    names::FILE,
    sae::{
        Activation, Parameters, RowNorm, Sae,
        formats::saelens::{self, About},
        history::{Record, Validation},
        parameters::Shape,
        random::{Normal, Purpose},
        train::TrainingMeta,
        weights::tests::random_sae,
    },
    stage::{ResolvedConfig, atomic, store::Store},
    text::{DatasetRecord, Tokenizer},
    top::{
        data::tests::plant,
        record::{
            Activations, Contrast, Histogram, LatentRecord, Neighbour, Ranked, SentenceRecord, Top,
        },
    },
};

/// Width of the demo model.
pub(super) const D: usize = 128;
/// Latents of each SAE.
pub(super) const D_SAE: usize = 48;

/// SAEs of the store and where they read; the last writes elsewhere.
pub(super) const SAES: [(&str, &str); 4] = [
    ("topk", "model.layers.2#in"),
    ("jump", "model.layers.3#in"),
    ("normed", "model.layers.2#in"),
    ("across", "model.layers.1.post_attention_layernorm"),
];

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub library: Library,
    pub engine: Engine,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    model: CapturedModelArgs,
}

pub(super) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo/model")
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let library = Library::new(Catalog::new(store, None));
        let args = Cli::parse_from(["test"]).model;
        let fixture = Self { dir, library, engine: Engine::new(args, "cpu".into(), 2) };
        fixture.capture();
        SAES.iter().for_each(|(name, hook)| fixture.training(name, hook));
        fixture.top_sentences();
        fixture
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.dir.path().join("runs").join(name)
    }

    fn capture(&self) {
        let hook = |name: &str| HookRecord {
            name: name.into(),
            transformer_lens: String::new(),
            alias: None,
            directory: "h".into(),
            d_in: D,
            statistics: Some(Statistics {
                mean_norm: 9.0,
                rms_norm: 20.0,
                max_abs: 5.0,
                saturated: 0,
                saturated_rows: 0,
            }),
        };
        let meta = CaptureMeta {
            schema: 1,
            run_id: "cap".into(),
            model: ModelRecord {
                id: demo().display().to_string(),
                revision: "local".into(),
                architecture: "LlamaForCausalLM".into(),
                tokenizer: Tokenizer::load(&demo()).unwrap().fingerprint(),
            },
            hooks: SAES.iter().map(|(_, name)| hook(name)).collect(),
            dataset: DatasetRecord {
                source: "planted".into(),
                revision: None,
                documents: 1,
                fingerprint: "0".into(),
            },
            workers: 1,
            activation_scale: 2.0,
            policy: None,
            config: ResolvedConfig::default(),
            totals: Some(Totals::default()),
        };
        fs_err::create_dir_all(self.run("cap")).unwrap();
        meta.write(&self.run("cap")).unwrap();
    }

    fn training(&self, name: &str, hook: &str) {
        let dir = self.run(name);
        fs_err::create_dir_all(&dir).unwrap();
        let sae = match name {
            "jump" => random_sae(D, D_SAE, Activation::JumpRelu),
            "normed" => Sae {
                row_norm: Some(RowNorm::LAYER_NORM),
                ..random_sae(D, D_SAE, Activation::Relu)
            },
            "across" => Sae { subtract_b_dec: false, ..random_transcoder() },
            _ => random_sae(D, D_SAE, Activation::TopK { k: 4 }),
        };
        let target = (name == "across").then(|| "model.layers.1.mlp".to_owned());
        let about = About { target: target.clone(), ..About::default() };
        saelens::save(&dir, &sae, about).unwrap();
        let record = |step: u64| Record { step, loss: f64::NAN, mse: 1.0, ..Record::default() };
        let history: Vec<Record> =
            (0..2500).map(record).map(|r| Record { loss: 0.5, ..r }).collect();
        atomic::write_json(&dir.join("history.json"), &history).unwrap();
        let meta = TrainingMeta {
            schema: 1,
            run_id: name.into(),
            capture_run_id: "cap".into(),
            hook: hook.into(),
            target_hook: target,
            d_in: D,
            d_sae: D_SAE,
            steps: 1,
            tokens: 1,
            input_scale: 1.0,
            validation: Validation { rows: 1, mse: 0.1, fvu: 0.25, l0: 4.0 },
            config: ResolvedConfig::default(),
        };
        atomic::write_json(&dir.join("meta.json"), &meta).unwrap();
    }

    /// Latent `l` of `topk` is strongest at word `l % 3` of sentence `10 · (l % 5)`; the last is dead.
    fn top_sentences(&self) {
        const WORDS: [&str; 3] = ["The", " Old", " żółw"];
        let sentence = |n: u64| SentenceRecord {
            sentence: 10 * n,
            document: n,
            ids: vec![1, 2, 3, 4],
            tokens: WORDS.iter().map(|w| (*w).to_owned()).chain([format!(" {n}\0")]).collect(),
        };
        let latent = |l: u32| {
            let (best, fired) =
                (10 * u64::from(l % 5), u64::from(l + 1 < D_SAE as u32) * u64::from(l + 1));
            let strong = l as f32 + 1.0;
            if fired == 0 {
                return LatentRecord { latent: l, ..LatentRecord::default() };
            }
            LatentRecord {
                latent: l,
                fired,
                density: fired as f64 / 1000.0,
                max: strong,
                weighted: f64::from(strong) * 0.01,
                top: Top { max: vec![Ranked { value: strong, sentence: best }], ..Top::default() },
                silent: vec![(best + 10) % 50],
                contrast: vec![Contrast { latent: 0, sentence: (best + 20) % 50 }],
                activations: [(best, Activations { at: vec![l % 3, 3], value: vec![strong, 0.5] })]
                    .into(),
                histogram: Histogram { first: -4, counts: vec![fired] },
                neighbours: vec![Neighbour { latent: (l + 1) % 4, cosine: 0.5 }],
                ..LatentRecord::default()
            }
        };
        let latents: Vec<LatentRecord> = (0..D_SAE as u32).map(latent).collect();
        let sentences: Vec<SentenceRecord> = (0..5).map(sentence).collect();
        let dir = self.run("topk");
        plant(&dir.join("top_sentences"), &latents, &sentences, 1000);
        fs_err::create_dir(dir.join("names")).unwrap();
        let lines = concat!(
            r#"{"latent":1,"label":"dogs","description":"Pets that bark","certainty":1,"model":"m","#,
            r#""scores":{"detection":{"value":0.75,"judgements":4}}}"#,
            "\n",
            r#"{"latent":2,"label":"Cats","description":"no","certainty":0.5,"model":"m"}"#,
            "\n",
            r#"{"latent":999,"label":"of another SAE","description":"","certainty":0,"model":"m"}"#,
        );
        fs_err::write(dir.join(FILE), lines).unwrap();
    }
}

fn random_transcoder() -> Sae {
    let mut params = Parameters::zeros(Shape::autoencoder(D, D_SAE));
    let mut normal = Normal::new(9, Purpose::Decoder);
    params.tensors_mut().into_iter().for_each(|tensor| normal.fill(tensor));
    Sae::new(params, Activation::TopK { k: 4 })
}
