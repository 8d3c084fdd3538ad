//! One stream's shards: where to go on, what is committed, who is writing.
//!
//! A worker that is asked to stop commits what it has as an unfinished shard; the next start reads
//! it back and goes on with it. So shards do not depend on interruptions.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::meta::{DroppedTokens, HookRecord, Statistics, Totals};
use crate::{
    shard::{
        ActivationWriter, Committed, Dropped, HookFile, Shard, Stats, Tokens,
        format::Metadata,
        manifest,
        reader::{MANIFEST, verified_tokens},
        tokens::Token,
        writer::Saturated,
    },
    slurm::Share,
    stage::{Failure, Result, lock::Lock},
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
    /// Whether finite values beyond f16 are stored as its largest number.
    pub saturate: bool,
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
    /// Of those, what policies dropped.
    pub dropped: Dropped,
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
    /// The unfinished shard that the next one replaces.
    unfinished: Option<Committed>,
    /// Whether a saturated value was reported.
    warned: bool,
    _lock: Lock,
}

/// The shard under construction.
#[derive(Debug)]
struct Open {
    first_document: u64,
    tokens_seen: u64,
    dropped: Dropped,
    tokens: Tokens,
    writers: Vec<ActivationWriter>,
}

fn manifest_path(run_dir: &Path, worker: usize) -> PathBuf {
    run_dir.join("workers").join(format!("{worker}.jsonl"))
}

impl Worker {
    /// Takes the stream and finds where to go on.
    ///
    /// # Errors
    /// [`Failure::stopped`] if another process has it; I/O errors; manifest lines that do not
    /// follow each other.
    pub fn claim(target: Target, share: Share, stream: Range<u64>) -> Result<Self> {
        for dir in target.hooks.iter().map(|h| h.directory.as_str()).chain(["tokens", "workers"]) {
            fs_err::create_dir_all(target.run_dir.join(dir))?;
        }
        let path = target.run_dir.join("workers").join(format!("{}.lock", share.index));
        let lock = Lock::take(&path, &format!("stream {} of this run", share.index))?;
        let mut lines = committed(&target.run_dir, share.index, &stream)?;
        let next_document = lines.last().map_or(stream.start, |l| l.end_document);
        let unfinished = lines.pop_if(|last| last.unfinished);
        let mut worker = Self {
            target,
            share,
            stream,
            next_document,
            shards: lines.len(),
            open: None,
            unfinished,
            warned: false,
            _lock: lock,
        };
        worker.sweep()?;
        if let Some(line) = worker.unfinished.clone() {
            worker.open = Some(worker.reopen(line)?);
        }
        if worker.left().is_empty() {
            worker.forget_replaced_lines()?;
        }
        Ok(worker)
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
            if let Some(Saturated { row, value }) = writer.append(rows)?
                && !std::mem::replace(&mut self.warned, true)
            {
                tracing::warn!(
                    "hook `{}`, row {row} of shard {}: {value} does not fit f16 and is stored as \
                     65504; meta.json will say how many were",
                    writer.hook(),
                    self.shards
                );
            }
        }
        for (document, text, tokens) in batch.sentences {
            open.tokens.push(document, &text, tokens);
        }
        open.tokens_seen += batch.tokens_seen;
        open.dropped.merge(batch.dropped);
        self.next_document = batch.documents.end;
        let whole = self.is_whole(&open);
        self.open = Some(open);
        if whole { self.commit() } else { Ok(()) }
    }

    /// Commits the shard under construction, if there is one; unfinished unless it is full or the
    /// stream ends.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn commit(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if self.unfinished.as_ref().is_some_and(|line| line.end_document == self.next_document) {
            return Ok(());
        }
        let unfinished = !self.is_whole(&open);
        let name = if unfinished {
            format!("{}.until-{}.safetensors", self.stem(), self.next_document)
        } else {
            format!("{}.safetensors", self.stem())
        };
        let root = &self.target.run_dir;
        let mut hooks: Vec<HookFile> = vec![];
        for (writer, hook) in open.writers.into_iter().zip(&self.target.hooks) {
            hooks.push(writer.finish(&root.join(&hook.directory).join(&name), root)?);
        }
        let tokens =
            open.tokens.write(&root.join("tokens").join(&name), root, &self.target.metadata)?;
        let line = Committed {
            worker: self.share.index,
            shard: self.shards,
            unfinished,
            first_document: open.first_document,
            end_document: self.next_document,
            sentences: open.tokens.sentences() as u64,
            rows: open.tokens.rows() as u64,
            tokens_seen: open.tokens_seen,
            dropped: open.dropped,
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
        self.shards += usize::from(!unfinished);
        self.unfinished = unfinished.then_some(line);
        self.sweep()?;
        if self.next_document == self.stream.end { self.forget_replaced_lines() } else { Ok(()) }
    }

    /// Removes what killed and stopped processes left: `.partial` files and unfinished shards that
    /// were replaced.
    fn sweep(&self) -> Result<()> {
        let mine = format!("shard-{}-", self.share.index);
        let current = self.unfinished.as_ref().map(|l| format!(".until-{}.", l.end_document));
        for dir in self.target.hooks.iter().map(|h| h.directory.as_str()).chain(["tokens"]) {
            for entry in fs_err::read_dir(self.target.run_dir.join(dir))? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let replaced =
                    name.contains(".until-") && !current.as_ref().is_some_and(|c| name.contains(c));
                if name.starts_with(&mine) && (replaced || name.ends_with(".partial")) {
                    fs_err::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Leaves only the lines of whole shards, so that the finished manifest tells nothing of
    /// interruptions.
    fn forget_replaced_lines(&self) -> Result<()> {
        let lines = committed(&self.target.run_dir, self.share.index, &self.stream)?;
        manifest::write(&manifest_path(&self.target.run_dir, self.share.index), &lines)?;
        Ok(())
    }

    fn is_whole(&self, open: &Open) -> bool {
        let widest = self.target.hooks.iter().map(|h| h.d_in).max().unwrap_or(1);
        let bytes = open.tokens.rows() as u64 * widest as u64 * 2;
        bytes >= self.target.shard_bytes || self.next_document == self.stream.end
    }

    fn begin(&self, first_document: u64) -> Result<Open> {
        let mut writers = vec![];
        for hook in &self.target.hooks {
            let path = self.target.run_dir.join(&hook.directory).join(self.stem());
            let mut metadata = self.target.metadata.clone();
            metadata.push(("hook".into(), hook.name.clone()));
            metadata.push(("scale".into(), self.target.scale.to_string()));
            let writer = ActivationWriter::create(
                &path,
                &hook.name,
                hook.d_in,
                self.target.scale,
                metadata,
            )?;
            writers.push(writer.saturating(self.target.saturate));
        }
        let (tokens, dropped) = (Tokens::new(), Dropped::default());
        Ok(Open { first_document, tokens_seen: 0, dropped, tokens, writers })
    }

    /// Reads an unfinished shard back.
    fn reopen(&self, line: Committed) -> Result<Open> {
        let root = &self.target.run_dir;
        let mut open = self.begin(line.first_document)?;
        for (writer, file) in open.writers.iter_mut().zip(&line.hooks) {
            writer.append_stored(Shard::open(root, line.clone(), file)?.rows(), &file.stats)?;
        }
        let tokens = verified_tokens(root, &line)?.into_tokens();
        Ok(Open { tokens_seen: line.tokens_seen, dropped: line.dropped, tokens, ..open })
    }

    fn stem(&self) -> String {
        format!("shard-{}-{}", self.share.index, self.shards)
    }
}

/// A worker's manifest lines, checked to cover its stream from the start without gaps. Unfinished
/// shards that were replaced are left out.
fn committed(run_dir: &Path, worker: usize, stream: &Range<u64>) -> Result<Vec<Committed>> {
    let path = manifest_path(run_dir, worker);
    let mut lines: Vec<Committed> = vec![];
    for line in manifest::read(&path)? {
        lines.pop_if(|last| last.unfinished);
        let next = lines.last().map_or(stream.start, |l| l.end_document);
        if line.first_document != next || line.end_document > stream.end {
            return Err(Failure::input(format!(
                "manifest `{}`: shard {} holds documents {}..{}, expected them to follow {next} within {stream:?}",
                path.display(),
                line.shard,
                line.first_document,
                line.end_document
            )));
        }
        lines.push(line);
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
    let (mut stats, mut dropped): (Vec<Stats>, _) = (vec![], Dropped::default());
    for line in lines {
        totals.shards += 1;
        totals.sentences += line.sentences;
        totals.rows += line.rows;
        totals.tokens_seen += line.tokens_seen;
        dropped.merge(line.dropped);
        stats.resize(line.hooks.len(), Stats::default());
        stats.iter_mut().zip(&line.hooks).for_each(|(sum, hook)| sum.merge(&hook.stats));
    }
    if totals.rows == 0 {
        return Err(Failure::input("no document has a token to keep: every one is empty")
            .hint("check TEXT_FIELD and DATA_LIMIT"));
    }
    let Dropped { first, norm } = dropped;
    // Whatever else the model saw was special.
    let special = totals.tokens_seen.saturating_sub(totals.rows + first + norm);
    totals.dropped = DroppedTokens { special, first, norm };
    manifest::write(&run_dir.join(MANIFEST), lines)?;
    let summary = |s: &Stats| Statistics {
        mean_norm: s.mean_norm(),
        rms_norm: s.rms_norm(),
        max_abs: s.max_abs,
        saturated: s.saturated,
        saturated_rows: s.saturated_rows,
    };
    Ok((totals, stats.iter().map(summary).collect()))
}
