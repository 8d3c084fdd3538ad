//! A capture run's records, and whether they agree with each other.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    files::Job,
    finding::{Damage, Finding, ShardId},
};
use crate::{
    capture::{
        CaptureMeta,
        worker::{manifest_path, sums},
    },
    shard::{Committed, manifest, reader::MANIFEST},
    stage::{Failure, Result, meta::META},
    text::Streams,
};

/// What a run's directory says about the run.
#[derive(Debug)]
pub struct Run {
    /// The directory.
    pub dir: PathBuf,
    /// `meta.json`.
    pub meta: CaptureMeta,
    /// One per worker.
    pub workers: Vec<WorkerLines>,
    /// `manifest.jsonl`; absent where the run is not complete.
    manifest: Option<Vec<Committed>>,
    findings: Vec<Finding>,
}

/// A worker's stream and what it committed.
#[derive(Debug)]
pub struct WorkerLines {
    /// The worker, from 0.
    pub worker: usize,
    /// Its documents.
    pub stream: Range<u64>,
    /// The lines that can be read, replaced unfinished ones left out.
    pub lines: Vec<Committed>,
}

impl WorkerLines {
    /// Documents behind the last line.
    fn rest(&self) -> Range<u64> {
        let end = self.lines.iter().map(|line| line.end_document).max();
        end.unwrap_or(self.stream.start).min(self.stream.end)..self.stream.end
    }

    /// Whether there may be files of the worker's that no line names: of a shard that is being
    /// written, or of a line that was lost.
    fn is_open(&self) -> bool {
        let begins = self.lines.iter().map(|line| line.first_document);
        let ends = self.lines.iter().map(|line| line.end_document);
        let follow =
            begins.chain([self.stream.end]).eq([self.stream.start].into_iter().chain(ends));
        !follow || self.lines.iter().any(|line| line.recapture)
    }
}

impl Run {
    /// Reads the records of the run in `dir`.
    ///
    /// # Errors
    /// Where `meta.json` or `streams.json` is missing or broken: nothing can be judged without
    /// them. I/O errors.
    pub fn open(dir: &Path) -> Result<Self> {
        let meta = CaptureMeta::read(dir)?.ok_or_else(|| {
            Failure::input(format!("`{}` is no capture run: it has no {META}", dir.display()))
        })?;
        let streams = Streams::load(dir)?;
        let mut findings = vec![];
        let mut workers = vec![];
        for (worker, i) in (0..streams.count).enumerate() {
            let path = manifest_path(dir, worker);
            let mut lines: Vec<Committed> = vec![];
            for line in readable(&path, dir, &mut findings)? {
                lines.pop_if(|last| last.unfinished);
                lines.push(line);
            }
            workers.push(WorkerLines { worker, stream: streams.range(i), lines });
        }
        let path = dir.join(MANIFEST);
        let manifest = match path.exists() {
            true => Some(readable(&path, dir, &mut findings)?),
            false => None,
        };
        Ok(Self { dir: dir.to_owned(), meta, workers, manifest, findings })
    }

    /// A run without a directory.
    #[cfg(test)]
    pub fn of(
        meta: CaptureMeta,
        workers: Vec<WorkerLines>,
        manifest: Option<Vec<Committed>>,
    ) -> Self {
        Self { dir: PathBuf::new(), meta, workers, manifest, findings: vec![] }
    }

    /// Whether the run claims to be complete.
    pub fn is_complete(&self) -> bool {
        self.meta.totals.is_some()
    }

    /// All lines of all workers.
    pub fn lines(&self) -> impl Iterator<Item = &Committed> {
        self.workers.iter().flat_map(|worker| &worker.lines)
    }

    /// The lines whose files are to be there, with the paths that they must have.
    pub fn jobs<'a>(&'a self) -> Vec<Job<'a>> {
        let standing = self.lines().filter(|line| !line.recapture && self.names_its_files(line));
        let files = |line: &'a Committed| {
            let hooks = std::iter::zip(&line.hooks, &self.meta.hooks);
            let activations = hooks.map(move |(file, hook)| Job::Activations(line, file, hook));
            std::iter::once(Job::Tokens(line)).chain(activations)
        };
        standing.flat_map(files).collect()
    }

    /// The manifest of `workers/<i>.jsonl`, relative to the run.
    fn lines_file(worker: usize) -> String {
        format!("workers/{worker}.jsonl")
    }

    /// The paths that a line's files must have, the token file's first; a manifest that somebody
    /// edited leads nowhere else.
    pub fn paths(&self, line: &Committed) -> Vec<String> {
        let mut name = format!("shard-{}-{}", line.worker, line.shard);
        if line.unfinished {
            name += &format!(".until-{}", line.end_document);
        }
        let directories = self.meta.hooks.iter().map(|hook| hook.directory.as_str());
        let all = std::iter::once("tokens").chain(directories);
        all.map(|directory| format!("{directory}/{name}.safetensors")).collect()
    }

    /// Whether a line has the run's hooks and the files that belong to it.
    pub fn names_its_files(&self, line: &Committed) -> bool {
        let hooks = line.hooks.iter().map(|hook| &hook.hook);
        let files = line.hooks.iter().map(|hook| &hook.file.path);
        hooks.eq(self.meta.hooks.iter().map(|hook| &hook.name))
            && std::iter::once(&line.tokens.path).chain(files).eq(&self.paths(line))
    }

    /// The line of a worker's shard that begins with document `next`; the manifest may have one
    /// that the worker's own file lost.
    pub fn line<'a>(
        &'a self,
        worker: &'a WorkerLines,
        shard: usize,
        next: u64,
    ) -> Option<&'a Committed> {
        let fits = |line: &&Committed| {
            (line.worker, line.shard, line.first_document) == (worker.worker, shard, next)
                && line.end_document > next
                && line.end_document <= worker.stream.end
        };
        let own = worker.lines.iter().rev().find(fits);
        own.or_else(|| self.manifest.iter().flatten().find(fits))
    }

    /// Everything that is wrong with the records and with the names of files.
    ///
    /// # Errors
    /// I/O errors.
    pub fn check(&self) -> Result<Vec<Finding>> {
        let mut findings = self.findings.clone();
        for worker in &self.workers {
            self.check_lines(worker, &mut findings);
        }
        self.check_manifest(&mut findings);
        self.check_sums(&mut findings);
        self.check_foreign(&mut findings)?;
        Ok(findings)
    }

    /// Each document of a stream is covered once, in order, by lines that follow each other.
    fn check_lines(&self, worker: &WorkerLines, findings: &mut Vec<Finding>) {
        let file = Self::lines_file(worker.worker);
        let mut add = |kind, detail| findings.push(Finding::new(kind, &file, detail));
        let (mut next, end) = (worker.stream.start, worker.stream.end);
        let mut id = ShardId { worker: worker.worker, shard: 0 };
        for line in &worker.lines {
            let found = ShardId { worker: line.worker, shard: line.shard };
            let range = format!("{}..{}", line.first_document, line.end_document);
            let what = format!("shard {found} holds documents {range}");
            if line.first_document > next {
                add(Damage::Gap, format!("{what}, expected {next} to come first"));
            } else if line.first_document < next || line.end_document > end {
                add(Damage::Overlap, format!("{what}, expected them within {next}..{end}"));
            } else if found != id {
                add(Damage::Line, format!("{what}, expected shard {id}"));
            }
            next = next.max(line.end_document);
            id.shard = line.shard + 1;
        }
        let strange = |line: &&Committed| !line.recapture && !self.names_its_files(line);
        for line in worker.lines.iter().filter(strange) {
            let shard = Some(ShardId { worker: line.worker, shard: line.shard });
            let detail = format!("does not name {}", self.paths(line).join(", "));
            findings.push(Finding { shard, ..Finding::new(Damage::Line, &file, detail) });
        }
        if self.is_complete() && !worker.rest().is_empty() {
            let what = format!("no shard holds documents {:?}", worker.rest());
            findings.push(Finding::new(Damage::Gap, file, what));
        }
    }

    fn check_manifest(&self, findings: &mut Vec<Finding>) {
        let Some(manifest) = &self.manifest else {
            if self.is_complete() {
                findings.push(Finding::new(Damage::Missing, MANIFEST, "the file does not exist"));
            }
            return;
        };
        let lines: Vec<&Committed> = self.lines().collect();
        let differing = std::iter::zip(manifest, &lines).position(|(a, b)| a != *b);
        let what = if let Some(i) = differing {
            format!("line {} is not that of shard {}-{}", i + 1, lines[i].worker, lines[i].shard)
        } else if manifest.len() != lines.len() {
            format!("{} lines, the workers have {}", manifest.len(), lines.len())
        } else {
            return;
        };
        findings.push(Finding::new(Damage::Manifest, MANIFEST, what));
    }

    fn check_sums(&self, findings: &mut Vec<Finding>) {
        let Some(stored) = self.meta.totals else { return };
        let lines: Vec<Committed> = self.lines().cloned().collect();
        let (totals, statistics) = sums(&lines);
        if totals != stored {
            let what = format!("totals are {stored:?}, the shards have {totals:?}");
            findings.push(Finding::new(Damage::Totals, META, what));
        }
        for (hook, statistics) in self.meta.hooks.iter().zip(statistics) {
            if hook.statistics != Some(statistics) {
                let name = &hook.name;
                let what = format!("statistics of hook `{name}` are not those of its shards");
                findings.push(Finding::new(Damage::Statistics, META, what));
            }
        }
    }

    /// Files in the directories of shards that no line names. What a worker at work has there is
    /// not foreign.
    fn check_foreign(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let known: BTreeSet<String> = self.lines().flat_map(|line| self.paths(line)).collect();
        let open: Vec<String> = self
            .workers
            .iter()
            .filter(|worker| worker.is_open())
            .map(|worker| format!("shard-{}-", worker.worker))
            .collect();
        let directories = self.meta.hooks.iter().map(|hook| hook.directory.as_str());
        for directory in std::iter::once("tokens").chain(directories) {
            let path = self.dir.join(directory);
            // A run that has committed nothing may have no directory yet.
            if !path.exists() {
                continue;
            }
            for entry in fs_err::read_dir(path)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let file = format!("{directory}/{name}");
                if !known.contains(&file) && !open.iter().any(|stem| name.starts_with(stem)) {
                    findings.push(Finding::new(Damage::Foreign, file, "no manifest line names it"));
                }
            }
        }
        Ok(())
    }
}

/// The lines of a manifest that can be read; the others become findings.
fn readable(path: &Path, dir: &Path, findings: &mut Vec<Finding>) -> Result<Vec<Committed>> {
    let file = path.strip_prefix(dir).unwrap_or(path).display().to_string();
    let mut lines = vec![];
    for line in manifest::read_each(path)? {
        match line {
            Ok(line) => lines.push(line),
            Err(e) => findings.push(Finding::new(Damage::Line, &file, e.to_string())),
        }
    }
    Ok(lines)
}
