//! What stage 03 would have written of a text of numbered words.

use std::path::Path;

use pipeline_common::top::{
    data::{LATENTS as LATENTS_FILE, Origin, SENTENCES, TABLE, Table},
    record::{Activations, Contrast, LatentRecord, Ranked, SentenceRecord, Top},
};
use serde_json::{Value, json};

use super::LATENTS;

/// `top_sentences/` of 8 latents over 480 sentences of 240 documents.
pub fn plant(dir: &Path) {
    fs_err::create_dir_all(dir).unwrap();
    let sentence = |n: u64| SentenceRecord {
        sentence: n,
        document: n / 2,
        ids: vec![1, 2, 3],
        tokens: vec!["A".into(), format!(" word{n}"), " is here".into()],
    };
    let sentences: Vec<SentenceRecord> = (0..480).map(sentence).collect();
    let latents: Vec<LatentRecord> = (0..LATENTS).map(latent).collect();
    let origin = Origin {
        schema: Origin::SCHEMA,
        training: "sae".into(),
        capture: "cap".into(),
        rows: 1440,
        sentences: 480,
        ..Origin::default()
    };
    let table = Table {
        origin,
        fired: latents.iter().map(|l| l.fired).collect(),
        weighted: vec![0.5; LATENTS as usize],
        max: latents.iter().map(|l| l.max).collect(),
        line: lines(&dir.join(LATENTS_FILE), latents.iter().map(|l| json!(l))),
        sentence: (0..480).collect(),
        sentence_line: lines(&dir.join(SENTENCES), sentences.iter().map(|s| json!(s))),
    };
    table.write(&dir.join(TABLE)).unwrap();
}

fn lines(path: &Path, records: impl Iterator<Item = Value>) -> Vec<u64> {
    let (mut text, mut starts) = (String::new(), vec![0]);
    for record in records {
        text += &format!("{record}\n");
        starts.push(text.len() as u64);
    }
    fs_err::write(path, text).unwrap();
    starts
}

fn latent(latent: u64) -> LatentRecord {
    let own: Vec<u64> = (0..480).filter(|n| n % LATENTS == latent).collect();
    let value = |n: u64| (n + 1) as f32;
    let ranked: Vec<Ranked> =
        own.iter().map(|n| Ranked { value: value(*n), sentence: *n }).collect();
    let best: Vec<Ranked> = ranked.iter().rev().take(10).copied().collect();
    let activation = |n: &u64| (*n, Activations { at: vec![1], value: vec![value(*n)] });
    let neighbour = (latent + 1) % LATENTS;
    let contrast = (0..480).filter(|n| n % LATENTS == neighbour).take(60);
    let silent = (0..480).filter(|n| ![latent, neighbour].contains(&(n % LATENTS)));
    LatentRecord {
        latent: latent as u32,
        density: 60.0 / 1440.0,
        fired: 60,
        max: value(own[59]),
        weighted: 0.5,
        top: Top { mean: best.clone(), max: best.clone(), last: best },
        deciles: ranked.chunks(6).map(<[Ranked]>::to_vec).collect(),
        silent: silent.take(80).collect(),
        contrast: contrast
            .map(|sentence| Contrast { latent: neighbour as u32, sentence })
            .collect(),
        activations: own.iter().map(activation).collect(),
        ..LatentRecord::default()
    }
}
