//! One stream's shards: where to go on, what is committed, who is writing.

use std::{
    fs::{File, TryLockError},
    ops::Range,
    path::{Path, PathBuf},
};

use super::meta::{HookRecord, Statistics, Totals};
use crate::{
    shard::{
        ActivationWriter, Committed, HookFile, ShardError, Stats, Tokens, format::Metadata,
        manifest, reader::MANIFEST, tokens::Token,
    },
    slurm::Share,
    stage::{Failure, Result, atomic},
};

/// Everything a worker needs to write shards.
#[derive(Clone, Debug)]
pub struct Target {
    /// The run's directory.
    pub run_dir: PathBuf,
    /// The hooks.
    pub hooks: Vec<HookRecord>,
    /// What activations are multiplied by.
    pub scale: f32,
    /// Bytes of activations per hook after which a shard is closed.
    pub shard_bytes: u64,
    /// Model, revision, tokenizer: repeated in every shard.
    pub metadata: Metadata,
}

/// The sentences of a batch with their kept tokens, and each hook's rows.
#[derive(Debug)]
pub struct Batch {
    /// The documents it covers, those without text included.
    pub documents: Range<u64>,
    /// Tokens the model saw.
    pub tokens_seen: u64,
    /// Document, text and kept tokens of each sentence.
    pub sentences: Vec<(u64, String, Vec<Token>)>,
    /// One per hook, `[kept tokens, d_in]`.
    pub rows: Vec<Vec<f32>>,
}

/// Writes the shards of one stream; holds the stream's lock.
#[derive(Debug)]
pub struct Worker {
    target: Target,
    share: Share,
    stream: Range<u64>,
    next_document: u64,
    shards: usize,
    open: Option<Open>,
    _lock: File,
}

/// The shard under construction.
#[derive(Debug)]
struct Open {
    first_document: u64,
    tokens_seen: u64,
    tokens: Tokens,
    writers: Vec<ActivationWriter>,
}

fn manifest_path(run_dir: &Path, worker: usize) -> PathBuf {
    run_dir.join("workers").join(format!("{worker}.jsonl"))
}

impl Worker {
    /// Takes the stream and finds where to go on; `None` if another process has it.
    ///
    /// # Errors
    /// I/O errors; manifest lines that do not follow each other.
    pub fn claim(target: Target, share: Share, stream: Range<u64>) -> Result<Option<Self>> {
        for dir in target.hooks.iter().map(|h| h.directory.as_str()).chain(["tokens", "workers"]) {
            fs_err::create_dir_all(target.run_dir.join(dir))?;
        }
        let lock =
            File::create(target.run_dir.join("workers").join(format!("{}.lock", share.index)))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
        let lines = committed(&target.run_dir, share.index, &stream)?;
        let next_document = lines.last().map_or(stream.start, |l| l.end_document);
        let shards = lines.len();
        Ok(Some(Self { target, share, stream, next_document, shards, open: None, _lock: lock }))
    }

    /// The documents still to capture.
    pub fn left(&self) -> Range<u64> {
        self.next_document..self.stream.end
    }

    /// Adds a batch; closes the shard when it is full or the stream ends.
    ///
    /// # Errors
    /// Values that do not fit f16; I/O errors.
    pub fn add(&mut self, mut batch: Batch) -> Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(batch.documents.start)?,
        };
        for (writer, rows) in open.writers.iter_mut().zip(&mut batch.rows) {
            writer.append(rows)?;
        }
        for (document, text, tokens) in batch.sentences {
            open.tokens.push(document, &text, tokens);
        }
        open.tokens_seen += batch.tokens_seen;
        self.next_document = batch.documents.end;
        let widest = self.target.hooks.iter().map(|h| h.d_in).max().unwrap_or(1);
        let full = open.tokens.rows() as u64 * widest as u64 * 2 >= self.target.shard_bytes;
        self.open = Some(open);
        if full || self.next_document == self.stream.end { self.commit() } else { Ok(()) }
    }

    /// Commits the shard under construction, if there is one.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn commit(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let root = &self.target.run_dir;
        let hooks: Vec<HookFile> = open
            .writers
            .into_iter()
            .map(|w| w.finish(root))
            .collect::<std::result::Result<_, ShardError>>()?;
        let tokens = open.tokens.write(
            &root.join("tokens").join(self.name()),
            root,
            &self.target.metadata,
        )?;
        let line = Committed {
            worker: self.share.index,
            shard: self.shards,
            first_document: open.first_document,
            end_document: self.next_document,
            sentences: open.tokens.sentences() as u64,
            rows: open.tokens.rows() as u64,
            tokens_seen: open.tokens_seen,
            tokens,
            hooks,
        };
        manifest::append(&manifest_path(root, self.share.index), &line)?;
        tracing::debug!(
            "committed shard {} of worker {}: {} rows",
            line.shard,
            line.worker,
            line.rows
        );
        self.shards += 1;
        Ok(())
    }

    fn begin(&self, first_document: u64) -> Result<Open> {
        let writer = |hook: &HookRecord| {
            let path = self.target.run_dir.join(&hook.directory).join(self.name());
            let mut metadata = self.target.metadata.clone();
            metadata.push(("hook".into(), hook.name.clone()));
            metadata.push(("scale".into(), self.target.scale.to_string()));
            ActivationWriter::create(&path, &hook.name, hook.d_in, self.target.scale, metadata)
        };
        let writers =
            self.target.hooks.iter().map(writer).collect::<std::result::Result<_, ShardError>>()?;
        Ok(Open { first_document, tokens_seen: 0, tokens: Tokens::new(), writers })
    }

    fn name(&self) -> String {
        format!("shard-{}-{}.safetensors", self.share.index, self.shards)
    }
}

/// A worker's manifest lines, checked to cover its stream from the start without gaps.
fn committed(run_dir: &Path, worker: usize, stream: &Range<u64>) -> Result<Vec<Committed>> {
    let path = manifest_path(run_dir, worker);
    let lines = manifest::read(&path)?;
    let mut next = stream.start;
    for line in &lines {
        if line.first_document != next || line.end_document > stream.end {
            return Err(Failure::input(format!(
                "manifest `{}`: shard {} holds documents {}..{}, expected them to follow {next} within {stream:?}",
                path.display(),
                line.shard,
                line.first_document,
                line.end_document
            )));
        }
        next = line.end_document;
    }
    Ok(lines)
}

/// All shards of the run in order, if every stream is complete.
///
/// # Errors
/// I/O errors; manifest lines that do not follow each other.
pub fn all_committed(run_dir: &Path, streams: &[Range<u64>]) -> Result<Option<Vec<Committed>>> {
    let mut all = vec![];
    for (worker, stream) in streams.iter().enumerate() {
        let lines = committed(run_dir, worker, stream)?;
        if lines.last().map_or(stream.start, |l| l.end_document) != stream.end {
            return Ok(None);
        }
        all.extend(lines);
    }
    Ok(Some(all))
}

/// Writes the run's manifest and returns its totals and each hook's statistics.
///
/// # Errors
/// An input failure if there is no row at all; I/O errors.
pub fn complete(run_dir: &Path, lines: &[Committed]) -> Result<(Totals, Vec<Statistics>)> {
    let mut totals = Totals::default();
    let mut stats: Vec<Stats> = vec![];
    let mut text = String::new();
    for line in lines {
        totals.shards += 1;
        totals.sentences += line.sentences;
        totals.rows += line.rows;
        totals.tokens_seen += line.tokens_seen;
        stats.resize(line.hooks.len(), Stats::default());
        stats.iter_mut().zip(&line.hooks).for_each(|(sum, hook)| sum.merge(&hook.stats));
        text += &serde_json::to_string(line).map_err(std::io::Error::from)?;
        text.push('\n');
    }
    if totals.rows == 0 {
        return Err(Failure::input("no document has a token to keep: every one is empty")
            .hint("check TEXT_FIELD and DATA_LIMIT"));
    }
    atomic::write(&run_dir.join(MANIFEST), text.as_bytes())?;
    let summary = |s: &Stats| Statistics {
        mean_norm: s.mean_norm(),
        rms_norm: s.rms_norm(),
        max_abs: s.max_abs,
    };
    Ok((totals, stats.iter().map(summary).collect()))
}
