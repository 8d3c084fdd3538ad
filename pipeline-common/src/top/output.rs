//! The files of `top_sentences/`, written latent by latent and committed together at the end.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use fs_err::File;
use serde::Serialize;

use super::{
    data::{LATENTS, SENTENCES},
    detail::Text,
    record::{LatentRecord, Ranked, SentenceRecord},
    tally::Aggregation,
};
use crate::stage::{Result, atomic};

/// A file that appears when it is committed.
pub(super) struct Pending {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
}

impl Pending {
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = BufWriter::new(File::create(atomic::partial_path(&path))?);
        Ok(Self { path, file, written: 0 })
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
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// JSON lines, and where each begins.
struct Lines {
    file: Pending,
    /// First byte of each line, and the end.
    starts: Vec<u64>,
}

impl Lines {
    fn create(path: PathBuf) -> Result<Self> {
        Ok(Self { file: Pending::create(path)?, starts: vec![0] })
    }

    fn write(&mut self, record: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.file, record).map_err(std::io::Error::from)?;
        self.file.write_all(b"\n")?;
        self.starts.push(self.file.written);
        Ok(())
    }

    fn commit(self) -> Result<Vec<u64>> {
        self.file.commit()?;
        Ok(self.starts)
    }
}

/// The YAML files, `latents.jsonl` and `sentences.jsonl` under way.
pub(super) struct Files {
    yaml: [Pending; 3],
    latents: Lines,
    sentences: Lines,
}

#[derive(Serialize)]
struct YamlEntry<'a> {
    value: f32,
    sentence: u64,
    document: u64,
    text: &'a str,
}

impl Files {
    pub fn create(dir: &Path) -> Result<Self> {
        fs_err::create_dir_all(dir)?;
        let yaml =
            |a: Aggregation| Pending::create(dir.join(format!("top_sentences_{}.yaml", a.name())));
        let [mean, max, last] = Aggregation::ALL;
        Ok(Self {
            yaml: [yaml(mean)?, yaml(max)?, yaml(last)?],
            latents: Lines::create(dir.join(LATENTS))?,
            sentences: Lines::create(dir.join(SENTENCES))?,
        })
    }

    /// Appends one latent; one that never fired has no entry in the YAML files. `text` gives the texts of
    /// its top sentences.
    pub fn latent<'a>(
        &mut self,
        record: &LatentRecord,
        text: impl Fn(u64) -> Option<&'a Text>,
    ) -> Result<()> {
        let top = &record.top;
        for (file, ranked) in self.yaml.iter_mut().zip([&top.mean, &top.max, &top.last]) {
            if !ranked.is_empty() {
                let entry = |r: &Ranked| {
                    let Text { document, text } = text(r.sentence)?;
                    Some(YamlEntry {
                        value: r.value,
                        sentence: r.sentence,
                        document: *document,
                        text,
                    })
                };
                let entries: Vec<_> = ranked.iter().filter_map(entry).collect();
                serde_yaml::to_writer(&mut *file, &BTreeMap::from([(record.latent, entries)]))
                    .map_err(std::io::Error::other)?;
            }
        }
        self.latents.write(record)
    }

    /// Appends one sentence.
    pub fn sentence(&mut self, record: &SentenceRecord) -> Result<()> {
        self.sentences.write(record)
    }

    /// Commits all; where the lines of latents and of sentences begin and the last ends.
    pub fn commit(self) -> Result<(Vec<u64>, Vec<u64>)> {
        for file in self.yaml {
            file.commit()?;
        }
        Ok((self.latents.commit()?, self.sentences.commit()?))
    }
}
