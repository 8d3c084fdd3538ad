//! What stages 02, 03 and 04 write, of any size, without their work.

use std::{fmt::Write, path::Path};

use pipeline_common::{
    sae::{
        Activation, Parameters, Sae,
        formats::saelens::{self, About},
        history::Validation,
        parameters::Shape,
        train::TrainingMeta,
    },
    stage::{ResolvedConfig, atomic},
    top::{
        data::{LATENTS, Origin, SENTENCES, TABLE, Table},
        record::{
            Activations, Contrast, Histogram, LatentRecord, LogitLens, Neighbour, Ranked,
            SentenceRecord, TokenLogit, Top,
        },
    },
};

/// How much a record holds.
#[derive(Clone, Copy)]
pub struct Size {
    /// Sentences of each list.
    pub list: usize,
    /// Sentences of the store.
    pub sentences: u64,
    /// Tokens of each.
    pub tokens: usize,
}

impl Size {
    pub const SMALL: Self = Self { list: 2, sentences: 300, tokens: 12 };
    /// As stage 03 writes for a large SAE.
    pub const FULL: Self = Self { list: 10, sentences: 100_000, tokens: 64 };
}

/// A complete training of an SAE that reads the demo model's hook; every second number is a sentence.
pub fn training(dir: &Path, d_sae: usize) {
    const D_IN: usize = 128;
    fs_err::create_dir_all(dir).unwrap();
    let mut params = Parameters::zeros(Shape::autoencoder(D_IN, d_sae));
    let wave = |n: usize, step: usize| ((n * step % 8191) as f32 * 0.013).sin() * 0.1;
    params.w_enc.iter_mut().enumerate().for_each(|(n, w)| *w = wave(n, 7919));
    params.w_dec.iter_mut().enumerate().for_each(|(n, w)| *w = wave(n, 6977));
    let sae = Sae::new(params, Activation::TopK { k: 8 });
    saelens::save(dir, &sae, About { frequency: vec![0.0; d_sae], ..About::default() }).unwrap();
    let meta = TrainingMeta {
        schema: 1,
        run_id: String::new(),
        capture_run_id: "cap".into(),
        hook: "model.layers.2#in".into(),
        target_hook: None,
        d_in: D_IN,
        d_sae,
        steps: 1,
        tokens: 1,
        input_scale: 1.0,
        validation: Validation { rows: 1, mse: 0.1, fvu: 0.1, l0: 8.0 },
        config: ResolvedConfig::default(),
    };
    atomic::write_json(&dir.join("meta.json"), &meta).unwrap();
}

/// `top_sentences/` of a training; latent 0 is dead.
pub fn top_sentences(run: &Path, d_sae: usize, size: Size) {
    let dir = run.join("top_sentences");
    fs_err::create_dir_all(&dir).unwrap();
    let rows = size.sentences * size.tokens as u64;
    let mut table = Table {
        origin: Origin {
            schema: Origin::SCHEMA,
            training: "sae".into(),
            capture: "cap".into(),
            rows,
            sentences: size.sentences,
            ..Origin::default()
        },
        line: vec![0],
        sentence_line: vec![0],
        ..Table::default()
    };
    let mut file = std::io::BufWriter::new(fs_err::File::create(dir.join(LATENTS)).unwrap());
    for number in 0..d_sae {
        let record = latent(number, d_sae, size, rows);
        table.fired.push(record.fired);
        table.weighted.push(record.weighted);
        table.max.push(record.max);
        let end = table.line[number] + line(&mut file, serde_json::to_string(&record));
        table.line.push(end);
    }
    let mut file = std::io::BufWriter::new(fs_err::File::create(dir.join(SENTENCES)).unwrap());
    for place in 0..size.sentences as usize {
        let record = sentence(place, size);
        table.sentence.push(record.sentence);
        let end = table.sentence_line[place] + line(&mut file, serde_json::to_string(&record));
        table.sentence_line.push(end);
    }
    drop(file);
    table.write(&dir.join(TABLE)).unwrap();
}

fn line(file: &mut impl std::io::Write, json: serde_json::Result<String>) -> u64 {
    let line = json.unwrap() + "\n";
    file.write_all(line.as_bytes()).unwrap();
    line.len() as u64
}

fn sentence(place: usize, size: Size) -> SentenceRecord {
    let word = |n: usize| format!(" word{}", (place * 31 + n * 17) % 997);
    SentenceRecord {
        sentence: 2 * place as u64,
        document: place as u64,
        ids: (0..size.tokens as u32).collect(),
        tokens: (0..size.tokens).map(word).collect(),
    }
}

/// Sentences that a latent's lists name, each list its own.
fn ranked(latent: usize, list: usize, size: Size) -> Vec<Ranked> {
    let number =
        |n: usize| 2 * ((latent * 7919 + list * 104_729 + n * 613) as u64 % size.sentences);
    let one = |n: usize| Ranked { value: 9.5 / (n + 1) as f32, sentence: number(n) };
    (0..size.list).map(one).collect()
}

fn latent(number: usize, d_sae: usize, size: Size, rows: u64) -> LatentRecord {
    let latent = number as u32;
    if number == 0 {
        return LatentRecord::default();
    }
    let list = |n| ranked(number, n, size);
    let deciles: Vec<Vec<Ranked>> = (3..13).map(list).collect();
    let (max, importance) = (list(1), list(13));
    let named = max.iter().chain(&importance).chain(deciles.iter().flatten());
    let activations = named.map(|ranked| {
        let at: Vec<u32> = (0..5).map(|n| (latent * 3 + n * 7) % size.tokens as u32).collect();
        let mut at: Vec<u32> = at;
        at.sort_unstable();
        at.dedup();
        let value = at.iter().map(|at| ranked.value * (1.0 + *at as f32 * 0.013)).collect();
        (ranked.sentence, Activations { at, value })
    });
    let near = |step: usize| {
        let one = move |n: usize| Neighbour {
            latent: ((number + n * step + 1) % d_sae) as u32,
            cosine: 0.9 / (n + 1) as f32,
        };
        (0..size.list).map(one).collect::<Vec<_>>()
    };
    let token = |n: usize| TokenLogit { id: n as u32, token: format!(" t{n}"), logit: 0.5 };
    let tokens: Vec<TokenLogit> = (0..size.list).map(token).collect();
    let fired = (number as u64 * 2_654_435_761) % (rows / 10) + 1;
    LatentRecord {
        latent,
        density: fired as f64 / rows as f64,
        fired,
        max: 9.5 + number as f32 * 1e-4,
        weighted: fired as f64 / rows as f64 * 3.3,
        activations: activations.collect(),
        silent: (0..size.list as u64).map(|n| 2 * (n * 31 % size.sentences)).collect(),
        contrast: vec![Contrast { latent: (latent + 1) % d_sae as u32, sentence: 4 }],
        top: Top { mean: list(0), max, last: list(2) },
        deciles,
        importance,
        histogram: Histogram { first: -8, counts: vec![fired / 4; 24] },
        logits: Some(LogitLens { promoted: tokens.clone(), suppressed: tokens }),
        neighbours: near(13),
        coactive: near(101),
    }
}

/// A name for every third latent.
pub fn names(run: &Path, d_sae: usize) {
    let mut lines = String::new();
    for latent in (1..d_sae).step_by(3) {
        let score = (latent % 50) as f64 / 100.0 + 0.5;
        writeln!(
            lines,
            r#"{{"latent":{latent},"label":"name {latent}","description":"A description of latent {latent}, of a usual length, in about one sentence.","certainty":0.8,"model":"m","scores":{{"detection":{{"value":{score},"judgements":20}}}}}}"#
        )
        .unwrap();
    }
    fs_err::create_dir_all(run.join("names")).unwrap();
    fs_err::write(run.join("names/names.jsonl"), lines).unwrap();
}
