//! `top_sentences/` as others read it: columns in memory, lines through memory maps.
//!
//! `table.safetensors` has what a list of all latents shows and where each line begins:
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `fired` | U64 `[d_sae]` | rows in which the latent is active |
//! | `weighted` | F64 `[d_sae]` | mean activation over all rows |
//! | `line` | U64 `[d_sae + 1]` | first byte of each line of `latents.jsonl`, and its end |
//! | `sentence` | U64 `[sentences]` | numbers of the sentences of `sentences.jsonl`, ascending |
//! | `sentence_line` | U64 `[sentences + 1]` | first byte of each of its lines, and its end |
//! | `max` | F32 `[d_sae]` | largest activation |
//!
//! Its metadata is an [`Origin`] as JSON, under `origin`.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::record::{LatentRecord, SentenceRecord};
use crate::{
    shard::{
        ShardError,
        format::{self, TensorSpec},
        tokens::column,
    },
    stage::{Failure, Result},
};

/// The files of the directory.
pub const TABLE: &str = "table.safetensors";
/// The page, written last.
pub const REPORT: &str = "report.html";
/// A line for each latent.
pub const LATENTS: &str = "latents.jsonl";
/// A line for each sentence that a latent's line names.
pub const SENTENCES: &str = "sentences.jsonl";

/// What the figures are of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of the files, [`Origin::SCHEMA`].
    pub schema: u32,
    /// The training whose latents they are.
    pub training: String,
    /// The capture whose rows were read.
    pub capture: String,
    /// Rows that were read.
    pub rows: u64,
    /// Sentences that were read.
    pub sentences: u64,
    /// Sentences of each aggregation that were asked for.
    pub top_n: usize,
    /// Of all that decides the results.
    pub digest: String,
}

impl Origin {
    /// The version that this program writes and reads.
    pub const SCHEMA: u32 = 1;
}

/// The columns of `table.safetensors`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What they are of.
    pub origin: Origin,
    /// Rows in which each latent is active, `[d_sae]`.
    pub fired: Vec<u64>,
    /// Mean activation over all rows, `[d_sae]`.
    pub weighted: Vec<f64>,
    /// Largest activation, `[d_sae]`.
    pub max: Vec<f32>,
    /// Where the lines of `latents.jsonl` begin and the last ends, `[d_sae + 1]`.
    pub line: Vec<u64>,
    /// Numbers of the sentences, ascending.
    pub sentence: Vec<u64>,
    /// Where the lines of `sentences.jsonl` begin and the last ends, `[sentences + 1]`.
    pub sentence_line: Vec<u64>,
}

impl Table {
    /// Writes the table and commits it; its lines' files are committed before.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn write(&self, path: &Path) -> Result<()> {
        let spec = |name, dtype, n| TensorSpec { name, dtype, shape: vec![n] };
        let (d_sae, sentences) = (self.fired.len(), self.sentence.len());
        let tensors: [(TensorSpec<'_>, &[u8]); 6] = [
            (spec("fired", Dtype::U64, d_sae), bytemuck::cast_slice(&self.fired)),
            (spec("weighted", Dtype::F64, d_sae), bytemuck::cast_slice(&self.weighted)),
            (spec("line", Dtype::U64, d_sae + 1), bytemuck::cast_slice(&self.line)),
            (spec("sentence", Dtype::U64, sentences), bytemuck::cast_slice(&self.sentence)),
            (
                spec("sentence_line", Dtype::U64, sentences + 1),
                bytemuck::cast_slice(&self.sentence_line),
            ),
            (spec("max", Dtype::F32, d_sae), bytemuck::cast_slice(&self.max)),
        ];
        let origin = serde_json::to_string(&self.origin).map_err(std::io::Error::from)?;
        Ok(format::write_file(path, &tensors, &vec![("origin".into(), origin)])?)
    }

    fn read(path: &Path) -> Result<Self> {
        let map = format::map(path)?;
        let file = format::parse(path, &map)?;
        let bad = |reason: String| ShardError::Format { path: path.to_owned(), reason };
        let table = Self {
            origin: origin(&map).map_err(bad)?,
            fired: column(path, &file, "fired")?,
            weighted: column(path, &file, "weighted")?,
            max: column(path, &file, "max")?,
            line: column(path, &file, "line")?,
            sentence: column(path, &file, "sentence")?,
            sentence_line: column(path, &file, "sentence_line")?,
        };
        let d_sae = table.fired.len();
        let agrees = [table.weighted.len(), table.max.len(), table.line.len().wrapping_sub(1)]
            == [d_sae; 3]
            && table.sentence_line.len() == table.sentence.len() + 1;
        if !agrees {
            return Err(bad("its columns differ in length".into()).into());
        }
        Ok(table)
    }
}

fn origin(bytes: &[u8]) -> std::result::Result<Origin, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let metadata = header.metadata().as_ref();
    let text = metadata.and_then(|m| m.get("origin")).ok_or("its metadata has no `origin`")?;
    let origin: Origin = serde_json::from_str(text).map_err(|e| format!("`origin`: {e}"))?;
    match origin.schema {
        Origin::SCHEMA => Ok(origin),
        other => Err(format!("schema is {other}, expected {}", Origin::SCHEMA)),
    }
}

/// What the results in a directory are of; none where they are not whole.
///
/// # Errors
/// Files that cannot be read. A table that is damaged counts as none.
pub(super) fn whole(dir: &Path) -> Result<Option<Origin>> {
    let path = dir.join(TABLE);
    if !path.is_file() || !dir.join(REPORT).is_file() {
        return Ok(None);
    }
    Ok(origin(&format::map(&path)?).ok())
}

/// Takes back that the results in a directory are whole, before they are replaced.
///
/// # Errors
/// A file that cannot be removed.
pub(super) fn withdraw(dir: &Path) -> Result<()> {
    for name in [TABLE, REPORT] {
        match fs_err::remove_file(dir.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The results of stage 03 for one training.
#[derive(Debug)]
pub struct TopData {
    table: Table,
    latents: Lines,
    sentences: Lines,
}

impl TopData {
    /// Opens `top_sentences/`, the directory itself.
    ///
    /// # Errors
    /// Files that are missing or damaged, or do not belong together.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(TABLE);
        if !path.is_file() {
            return Err(Failure::input(format!("`{}` is missing", path.display()))
                .hint("03_top_sentences writes it"));
        }
        let table = Table::read(&path)?;
        let latents = Lines::open(&dir.join(LATENTS), &table.line)?;
        let sentences = Lines::open(&dir.join(SENTENCES), &table.sentence_line)?;
        Ok(Self { table, latents, sentences })
    }

    /// The columns.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Latents of the SAE.
    pub fn d_sae(&self) -> usize {
        self.table.fired.len()
    }

    /// Fraction of rows in which a latent is active.
    pub fn density(&self, latent: usize) -> f64 {
        self.table.fired[latent] as f64 / self.table.origin.rows.max(1) as f64
    }

    /// A latent's line, JSON without its line feed.
    ///
    /// # Errors
    /// A line that does not lie within the file or is not UTF-8.
    pub fn latent_json(&self, latent: usize) -> Result<&str> {
        self.latents.line(&self.table.line, latent)
    }

    /// A latent below [`Self::d_sae`].
    ///
    /// # Errors
    /// A line that is damaged.
    pub fn latent(&self, latent: usize) -> Result<LatentRecord> {
        self.latents.record(&self.table.line, latent)
    }

    /// The place of a sentence in `sentences.jsonl`, by its number in the capture.
    pub fn place(&self, sentence: u64) -> Option<usize> {
        self.table.sentence.binary_search(&sentence).ok()
    }

    /// A sentence that a latent's line names.
    ///
    /// # Errors
    /// A sentence that is missing; a line that is damaged.
    pub fn named(&self, sentence: u64) -> Result<SentenceRecord> {
        let place = self.place(sentence).ok_or_else(|| {
            let path = self.sentences.path.display();
            Failure::input(format!("`{path}` lacks sentence {sentence}, which {LATENTS} names"))
                .hint("03_top_sentences writes both anew")
        })?;
        self.sentence(place)
    }

    /// The line of the sentence at a [place](Self::place), JSON without its line feed.
    ///
    /// # Errors
    /// As [`Self::latent_json`].
    pub fn sentence_json(&self, place: usize) -> Result<&str> {
        self.sentences.line(&self.table.sentence_line, place)
    }

    /// The sentence at a [place](Self::place).
    ///
    /// # Errors
    /// A line that is damaged.
    pub fn sentence(&self, place: usize) -> Result<SentenceRecord> {
        self.sentences.record(&self.table.sentence_line, place)
    }
}

/// A mapped JSON lines file.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    map: Option<Mmap>,
}

impl Lines {
    fn open(path: &Path, starts: &[u64]) -> Result<Self> {
        let bytes = fs_err::metadata(path)?.len();
        let end = starts.last().copied().unwrap_or(0);
        if bytes != end {
            return Err(Failure::input(format!(
                "`{}` has {bytes} bytes, {TABLE} beside it says {end}",
                path.display()
            ))
            .hint("03_top_sentences writes both anew"));
        }
        // An empty file cannot be mapped.
        let map = (bytes > 0).then(|| format::map(path)).transpose()?;
        Ok(Self { path: path.to_owned(), map })
    }

    fn line(&self, starts: &[u64], n: usize) -> Result<&str> {
        let range: Range<usize> = starts[n] as usize..starts[n + 1] as usize;
        let bytes = self.map.as_deref().and_then(|map| map.get(range));
        let text = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| self.damaged(n, "is not text"))?;
        Ok(text.trim_end_matches('\n'))
    }

    fn record<T: DeserializeOwned>(&self, starts: &[u64], n: usize) -> Result<T> {
        let line = self.line(starts, n)?;
        serde_json::from_str(line).map_err(|e| self.damaged(n, &e.to_string()))
    }

    fn damaged(&self, n: usize, why: &str) -> Failure {
        Failure::input(format!("`{}` line {}: {why}", self.path.display(), n + 1))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde::Serialize;

    use super::*;

    /// Writes `top_sentences/` of records, as stage 03 does.
    pub fn plant(dir: &Path, latents: &[LatentRecord], sentences: &[SentenceRecord], rows: u64) {
        fn lines<T: Serialize>(path: &Path, records: &[T]) -> Vec<u64> {
            let (mut text, mut starts) = (String::new(), vec![0]);
            for record in records {
                text += &serde_json::to_string(record).unwrap();
                text.push('\n');
                starts.push(text.len() as u64);
            }
            fs_err::write(path, text).unwrap();
            starts
        }
        fs_err::create_dir_all(dir).unwrap();
        let table = Table {
            origin: Origin {
                schema: Origin::SCHEMA,
                training: "sae".into(),
                capture: "cap".into(),
                rows,
                sentences: sentences.len() as u64,
                ..Origin::default()
            },
            fired: latents.iter().map(|l| l.fired).collect(),
            weighted: latents.iter().map(|l| l.weighted).collect(),
            max: latents.iter().map(|l| l.max).collect(),
            line: lines(&dir.join(LATENTS), latents),
            sentence: sentences.iter().map(|s| s.sentence).collect(),
            sentence_line: lines(&dir.join(SENTENCES), sentences),
        };
        table.write(&dir.join(TABLE)).unwrap();
    }

    fn some() -> (Vec<LatentRecord>, Vec<SentenceRecord>) {
        let latent =
            |latent| LatentRecord { latent, fired: u64::from(latent), ..Default::default() };
        let sentence = |sentence| SentenceRecord {
            sentence,
            document: 3,
            ids: vec![1, 2],
            tokens: vec!["żó".into(), "\n".into()],
        };
        ((0..4).map(latent).collect(), vec![sentence(2), sentence(7)])
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (latents, sentences) = some();
        plant(dir.path(), &latents, &sentences, 10);
        let data = TopData::open(dir.path()).unwrap();
        assert_eq!(data.d_sae(), 4);
        assert_eq!(data.density(2), 0.2);
        assert_eq!(data.latent(3).unwrap(), latents[3]);
        assert_eq!(data.place(3), None);
        assert_eq!(data.sentence(data.place(7).unwrap()).unwrap(), sentences[1]);
        assert!(data.sentence_json(0).unwrap().ends_with('}'));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TopData::open(dir.path()).unwrap_err().source.to_string().contains(TABLE));
        let (latents, sentences) = some();
        plant(dir.path(), &latents, &sentences, 10);
        fs_err::write(dir.path().join(LATENTS), "{}\n").unwrap();
        let words = TopData::open(dir.path()).unwrap_err().source.to_string();
        assert!(words.contains(LATENTS) && words.contains("3 bytes"), "{words}");
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (latents, sentences) = some();
        plant(dir.path(), &latents, &sentences, 10);
        let path = dir.path().join(LATENTS);
        let text =
            fs_err::read_to_string(&path).unwrap().replacen("\"latent\":1", "\"latent\":x", 1);
        fs_err::write(&path, text).unwrap();
        let data = TopData::open(dir.path()).unwrap();
        assert!(data.latent(1).unwrap_err().source.to_string().contains("line 2"));
        data.latent(2).unwrap();
    }
}
