//! One stream's shards: where to go on, what is committed, who is writing.
//!
//! A worker that is asked to stop commits what it has as an unfinished shard; the next start reads
//! it back and goes on with it. So shards do not depend on interruptions. Shards that were found
//! damaged are captured again first, from the same batches, so that their files come out the same.

use std::{
    collections::VecDeque,
    ops::Range,
    path::{Path, PathBuf},
};

use super::meta::{HookRecord, Statistics, Totals};
use crate::{
    remote::{RemoteRun, Stream, Uploader},
    shard::{
        ActivationWriter, Committed, Dropped, HookFile, Shard, Stats, Tokens,
        format::Metadata,
        manifest,
        reader::{MANIFEST, verified_tokens},
        tokens::Token,
        writer::Saturated,
    },
    slurm::Share,
    stage::{Failure, Result, StopFlag, atomic, lock::Lock},
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
    /// Shards to capture again, before the rest of the stream.
    again: VecDeque<Committed>,
    /// The whole shards.
    captured: Totals,
    uploader: Option<Uploader>,
    _lock: Lock,
}

/// The shard under construction.
#[derive(Debug)]
struct Open {
    shard: usize,
    documents: Range<u64>,
    /// Where a shard that is captured again ends.
    until: Option<u64>,
    tokens_seen: u64,
    dropped: Dropped,
    tokens: Tokens,
    writers: Vec<ActivationWriter>,
}

/// The manifest of one worker.
pub fn manifest_path(run_dir: &Path, worker: usize) -> PathBuf {
    run_dir.join("workers").join(format!("{worker}.jsonl"))
}

/// Held by the one process that writes a worker's files.
///
/// # Errors
/// As [`Lock::take`].
pub fn worker_lock(run_dir: &Path, worker: usize) -> Result<Lock> {
    let path = run_dir.join("workers").join(format!("{worker}.lock"));
    Lock::take(&path, &format!("stream {worker} of this run"))
}

impl Worker {
    /// Takes the stream and finds where to go on; with `remote` in step with what is there.
    ///
    /// # Errors
    /// [`Failure::stopped`] if another process has it; I/O errors; manifest lines that do not
    /// follow each other.
    pub fn claim(
        target: Target,
        share: Share,
        stream: Range<u64>,
        remote: Option<Stream>,
        stop: &StopFlag,
    ) -> Result<Self> {
        for dir in target.hooks.iter().map(|h| h.directory.as_str()).chain(["tokens", "workers"]) {
            fs_err::create_dir_all(target.run_dir.join(dir))?;
        }
        let lock = worker_lock(&target.run_dir, share.index)?;
        let mut lines = committed(&target.run_dir, share.index, &stream)?;
        let mut uploader = None;
        if let Some(mut remote) = remote {
            lines = remote.catch_up(lines)?;
            uploader = Some(Uploader::start(remote, lines.len(), stop.clone())?);
        }
        let next_document = lines.last().map_or(stream.start, |l| l.end_document);
        let unfinished = lines.pop_if(|last| last.unfinished);
        let captured = Totals::of(lines.iter().filter(|line| !line.recapture));
        let worker = Self {
            target,
            share,
            stream,
            next_document,
            shards: lines.len(),
            open: None,
            unfinished,
            warned: false,
            again: lines.into_iter().filter(|line| line.recapture).collect(),
            captured,
            uploader,
            _lock: lock,
        };
        worker.sweep()?;
        if worker.left().is_empty() {
            worker.forget_replaced_lines()?;
        }
        Ok(worker)
    }

    /// The documents still to capture, in the order in which [`Self::add`] expects them.
    pub fn left(&self) -> Vec<Range<u64>> {
        let again = self.again.iter().map(|line| line.first_document..line.end_document);
        let rest = self.next_document..self.stream.end;
        again.chain([rest]).filter(|range| !range.is_empty()).collect()
    }

    /// Documents of the stream.
    pub fn documents(&self) -> u64 {
        self.stream.end - self.stream.start
    }

    /// Documents still to capture.
    pub fn documents_left(&self) -> u64 {
        self.left().iter().map(|range| range.end - range.start).sum()
    }

    /// What is committed.
    pub fn captured(&self) -> Totals {
        self.unfinished.iter().fold(self.captured, Totals::with)
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
        open.documents.end = batch.documents.end;
        let whole = self.is_whole(&open);
        self.open = Some(open);
        if whole { self.commit() } else { Ok(()) }
    }

    /// Commits the shard under construction, if there is one; unfinished unless it is full or the
    /// stream ends. One that is captured again is left to the next start unless it is whole.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn commit(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let (again, unfinished) = (open.until.is_some(), !self.is_whole(&open));
        if again && unfinished {
            return self.sweep();
        }
        let stem = self.stem(open.shard);
        let name = if unfinished {
            format!("{stem}.until-{}.safetensors", open.documents.end)
        } else {
            format!("{stem}.safetensors")
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
            shard: open.shard,
            unfinished,
            recapture: false,
            first_document: open.documents.start,
            end_document: open.documents.end,
            sentences: open.tokens.sentences() as u64,
            rows: open.tokens.rows() as u64,
            tokens_seen: open.tokens_seen,
            dropped: open.dropped,
            tokens,
            hooks,
        };
        let (shard, rows) = (line.shard, line.rows);
        if again {
            self.replace(line)?
        } else {
            self.append(line)?
        }
        tracing::debug!("committed shard {shard} of worker {}: {rows} rows", self.share.index);
        self.sweep()?;
        if self.left().is_empty() {
            self.forget_replaced_lines()?;
        }
        self.hand_over()
    }

    fn append(&mut self, line: Committed) -> Result<()> {
        manifest::append(&manifest_path(&self.target.run_dir, self.share.index), &line)?;
        self.next_document = line.end_document;
        if line.unfinished {
            self.unfinished = Some(line);
        } else {
            (self.unfinished, self.captured) = (None, self.captured.with(&line));
            self.shards += 1;
        }
        Ok(())
    }

    /// Puts the line of a shard captured again in the place of the damaged one's.
    fn replace(&mut self, line: Committed) -> Result<()> {
        let mut lines = committed(&self.target.run_dir, self.share.index, &self.stream)?;
        self.captured = self.captured.with(&line);
        self.again.pop_front();
        if let Some(damaged) = lines.iter_mut().find(|l| l.shard == line.shard) {
            *damaged = line;
        }
        Ok(manifest::write(&manifest_path(&self.target.run_dir, self.share.index), &lines)?)
    }

    /// Leaves what was committed to the uploads.
    fn hand_over(&self) -> Result<()> {
        let Some(uploader) = &self.uploader else { return Ok(()) };
        let lines = committed(&self.target.run_dir, self.share.index, &self.stream)?;
        Ok(uploader.hand_over(lines)?)
    }

    /// Waits until everything committed is uploaded.
    ///
    /// # Errors
    /// What ended the uploads; [`Failure::stopped`] if they take too long after a stop was asked for.
    pub fn finish_uploads(&mut self) -> Result<()> {
        let Some(uploader) = self.uploader.take() else { return Ok(()) };
        match uploader.finish()? {
            Some(stream) if self.left().is_empty() => Ok(stream.sweep()?),
            Some(_) => Ok(()),
            None => Err(Failure::stopped("stopped on request; the next start uploads the rest")),
        }
    }

    /// Removes what killed and stopped processes left: `.partial` files and unfinished shards that
    /// were replaced.
    fn sweep(&self) -> Result<()> {
        sweep_manifest(&self.target.run_dir, self.share.index)?;
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
        if let Some(end) = open.until {
            return open.documents.end == end;
        }
        let widest = self.target.hooks.iter().map(|h| h.d_in).max().unwrap_or(1);
        let bytes = open.tokens.rows() as u64 * widest as u64 * 2;
        bytes >= self.target.shard_bytes || open.documents.end == self.stream.end
    }

    /// Begins the shard that `first_document` belongs to, or goes on with the unfinished one.
    fn begin(&self, first_document: u64) -> Result<Open> {
        match (self.again.front(), self.unfinished.clone()) {
            (Some(line), _) => {
                self.begin_shard(line.shard, first_document, Some(line.end_document))
            }
            (None, Some(line)) => self.reopen(line),
            (None, None) => self.begin_shard(self.shards, first_document, None),
        }
    }

    fn begin_shard(&self, shard: usize, first_document: u64, until: Option<u64>) -> Result<Open> {
        let mut writers = vec![];
        for hook in &self.target.hooks {
            let path = self.target.run_dir.join(&hook.directory).join(self.stem(shard));
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
        let documents = first_document..first_document;
        let (tokens, dropped) = (Tokens::new(), Dropped::default());
        Ok(Open { shard, documents, until, tokens_seen: 0, dropped, tokens, writers })
    }

    /// Reads an unfinished shard back.
    fn reopen(&self, line: Committed) -> Result<Open> {
        let root = &self.target.run_dir;
        let mut open = self.begin_shard(line.shard, line.first_document, None)?;
        for (writer, file) in open.writers.iter_mut().zip(&line.hooks) {
            writer.append_stored(Shard::open(root, line.clone(), file)?.rows(), &file.stats)?;
        }
        let tokens = verified_tokens(root, &line)?.into_tokens();
        Ok(Open { tokens_seen: line.tokens_seen, dropped: line.dropped, tokens, ..open })
    }

    fn stem(&self, shard: usize) -> String {
        format!("shard-{}-{shard}", self.share.index)
    }
}

/// A worker's manifest lines, checked to cover its stream from the start without gaps. Unfinished
/// shards that were replaced are left out.
fn committed(run_dir: &Path, worker: usize, stream: &Range<u64>) -> Result<Vec<Committed>> {
    let path = manifest_path(run_dir, worker);
    following(manifest::read(&path)?, &path, stream)
}

/// The lines that count, checked; `path` is for messages.
fn following(all: Vec<Committed>, path: &Path, stream: &Range<u64>) -> Result<Vec<Committed>> {
    let mut lines: Vec<Committed> = vec![];
    for line in all {
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

fn sweep_manifest(run_dir: &Path, worker: usize) -> std::io::Result<()> {
    match fs_err::remove_file(atomic::partial_path(&manifest_path(run_dir, worker))) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether a worker of the run has shards to capture again.
///
/// # Errors
/// I/O errors; manifest lines that cannot be read.
pub fn is_under_repair(run_dir: &Path, workers: usize) -> Result<bool> {
    for worker in 0..workers {
        let lines = manifest::read(&manifest_path(run_dir, worker))?;
        if lines.iter().any(|line| line.recapture) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All shards of the run in order, if every stream is complete: of a remote run, there.
///
/// # Errors
/// I/O errors; manifest lines that do not follow each other.
pub fn all_committed(
    run_dir: &Path,
    remote: Option<&RemoteRun>,
    streams: &[Range<u64>],
) -> Result<Option<Vec<Committed>>> {
    let mut all = vec![];
    for (worker, stream) in streams.iter().enumerate() {
        let path = manifest_path(run_dir, worker);
        let lines = match remote {
            Some(remote) => remote.lines(worker)?,
            None => manifest::read(&path)?,
        };
        let lines = following(lines, &path, stream)?;
        let end = lines.last().map_or(stream.start, |l| l.end_document);
        if end != stream.end || lines.iter().any(|l| l.recapture) {
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
    let (totals, statistics) = sums(lines);
    if totals.rows == 0 {
        return Err(Failure::input("no document has a token to keep: every one is empty")
            .hint("check TEXT_FIELD and DATA_LIMIT"));
    }
    manifest::write(&run_dir.join(MANIFEST), lines)?;
    Ok((totals, statistics))
}

/// The totals and each hook's statistics.
pub fn sums(lines: &[Committed]) -> (Totals, Vec<Statistics>) {
    let mut stats: Vec<Stats> = vec![];
    for line in lines {
        stats.resize(line.hooks.len(), Stats::default());
        stats.iter_mut().zip(&line.hooks).for_each(|(sum, hook)| sum.merge(&hook.stats));
    }
    let summary = |s: &Stats| Statistics {
        mean_norm: s.mean_norm(),
        rms_norm: s.rms_norm(),
        max_abs: s.max_abs,
        saturated: s.saturated,
        saturated_rows: s.saturated_rows,
    };
    (Totals::of(lines), stats.iter().map(summary).collect())
}
