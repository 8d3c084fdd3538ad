//! The files of `top_sentences/`, written latent by latent and committed together at the end.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use fs_err::File;
use serde::Serialize;

use super::{
    best::Scored,
    detail::{Activations, Details},
    tally::{Aggregation, Tally},
};
use crate::stage::{Result, atomic};

/// A file that appears when it is committed.
pub(super) struct Pending {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Pending {
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = BufWriter::new(File::create(atomic::partial_path(&path))?);
        Ok(Self { path, file })
    }

    pub fn commit(mut self) -> Result<()> {
        self.file.flush()?;
        Ok(atomic::commit(&atomic::partial_path(&self.path), &self.path)?)
    }
}

impl Drop for Pending {
    /// Leaves nothing behind when the stage stops before the end.
    fn drop(&mut self) {
        let _committed = fs_err::remove_file(atomic::partial_path(&self.path));
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The YAML files and `latents.jsonl` under way.
pub(super) struct Files {
    yaml: [Pending; 3],
    jsonl: Pending,
}

#[derive(Serialize)]
struct YamlEntry<'a> {
    value: f32,
    sentence: u64,
    document: u64,
    text: &'a str,
}

#[derive(Serialize)]
struct LatentLine<'a> {
    latent: usize,
    density: f64,
    fired: u64,
    max: f32,
    /// Mean activation over all rows.
    weighted: f64,
    top: BTreeMap<&'static str, Vec<JsonEntry<'a>>>,
}

#[derive(Serialize)]
struct JsonEntry<'a> {
    value: f32,
    sentence: u64,
    document: u64,
    tokens: &'a [String],
    activations: &'a Activations,
}

impl Files {
    pub fn create(dir: &Path) -> Result<Self> {
        fs_err::create_dir_all(dir)?;
        let yaml =
            |a: Aggregation| Pending::create(dir.join(format!("top_sentences_{}.yaml", a.name())));
        let [mean, max, last] = Aggregation::ALL;
        let yaml = [yaml(mean)?, yaml(max)?, yaml(last)?];
        Ok(Self { yaml, jsonl: Pending::create(dir.join("latents.jsonl"))? })
    }

    /// Appends one latent; one that never fired has no entry in the YAML files.
    pub fn write(&mut self, latent: usize, tally: &Tally, details: &Details) -> Result<()> {
        let figures = &tally.latents()[latent];
        for (file, best) in self.yaml.iter_mut().zip(&figures.best) {
            if best.entries().is_empty() {
                continue;
            }
            let entries: Vec<_> = best.entries().iter().map(|s| yaml_entry(s, details)).collect();
            serde_yaml::to_writer(&mut *file, &BTreeMap::from([(latent, entries)]))
                .map_err(std::io::Error::other)?;
        }
        let top = Aggregation::ALL.iter().zip(&figures.best).map(|(aggregation, best)| {
            let entries = best.entries().iter().map(|s| json_entry(latent, s, details));
            (aggregation.name(), entries.collect())
        });
        let line = LatentLine {
            latent,
            density: tally.density(latent),
            fired: figures.fired,
            max: figures.max,
            weighted: tally.weighted(latent),
            top: top.collect(),
        };
        serde_json::to_writer(&mut self.jsonl, &line).map_err(std::io::Error::from)?;
        Ok(self.jsonl.write_all(b"\n")?)
    }

    pub fn commit(self) -> Result<()> {
        for file in self.yaml {
            file.commit()?;
        }
        self.jsonl.commit()
    }
}

fn yaml_entry<'a>(scored: &Scored, details: &'a Details) -> YamlEntry<'a> {
    let sentence = &details.sentences[&scored.sentence];
    YamlEntry {
        value: scored.value,
        sentence: scored.sentence,
        document: sentence.document,
        text: &sentence.text,
    }
}

fn json_entry<'a>(latent: usize, scored: &Scored, details: &'a Details) -> JsonEntry<'a> {
    let sentence = &details.sentences[&scored.sentence];
    JsonEntry {
        value: scored.value,
        sentence: scored.sentence,
        document: sentence.document,
        tokens: &sentence.tokens,
        activations: &details.activations[&(latent as u32, scored.sentence)],
    }
}
