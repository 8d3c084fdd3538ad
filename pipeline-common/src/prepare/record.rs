//! `prepared.json`: what a run was prepared from, and the streams that there are.
//!
//! Holds no time and no host. The streams are in it once all are written: that completes the
//! preparation.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    model::ModelRecord,
    remote::RemoteRun,
    shard::ShardFile,
    stage::{Failure, ResolvedConfig, Result, atomic, meta},
    text::{Dataset, DatasetRecord, Streams, streams::FILE as STREAMS},
};

use super::report::{PAGE, TEXT};

/// The file's name in a run's directory.
pub const FILE: &str = "prepared.json";

/// Version of the file; readers refuse newer ones.
pub const SCHEMA: u32 = 1;

/// What a prepared run says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The run's name.
    pub run_id: String,
    /// The model whose tokenizer counted.
    pub model: ModelRecord,
    /// The documents.
    pub dataset: DatasetRecord,
    /// blake3 of the chat template that rendered them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Every setting that decides the result, with its origin.
    pub config: ResolvedConfig,
    /// Present once every stream is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Contexts of all documents: documents, or sentences.
    pub contexts: u64,
    /// Documents without text.
    pub empty: u64,
    /// The streams, in order.
    pub streams: Vec<StreamFile>,
}

/// One stream's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamFile {
    /// Documents in it, one a line.
    pub documents: u64,
    /// Path relative to the run, length and digest.
    #[serde(flatten)]
    pub file: ShardFile,
}

impl Prepared {
    /// Reads a run's file; `None` where there is none.
    ///
    /// # Errors
    /// As [`meta::read_file`].
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        meta::read_file(&run_dir.join(FILE), SCHEMA, "a prepared run")
    }

    /// Replaces the run's file.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        Ok(atomic::write_json(&run_dir.join(FILE), self)?)
    }
}

/// Small files of a prepared run beside its streams; the one that completes it comes last.
const SMALL: [&str; 4] = [STREAMS, TEXT, PAGE, FILE];

/// Uploads a run that is prepared to the end.
///
/// # Errors
/// [`crate::remote::RemoteError`] naming the object; I/O errors.
pub fn push(run_dir: &Path, remote: &RemoteRun) -> Result<()> {
    let Some(written) = Prepared::read(run_dir)?.and_then(|record| record.written) else {
        return Ok(());
    };
    for StreamFile { file, .. } in &written.streams {
        remote.client().upload(&run_dir.join(&file.path), &remote.key(&file.path), file)?;
    }
    for name in SMALL {
        remote.client().put(&remote.key(name), &fs_err::read(run_dir.join(name))?)?;
    }
    Ok(())
}

/// Fetches what a remote store holds of a prepared run and this node does not.
///
/// # Errors
/// As [`push`].
pub fn pull(run_dir: &Path, remote: &RemoteRun) -> Result<()> {
    let (client, file) = (remote.client(), run_dir.join(FILE));
    let there = if file.exists() { None } else { client.get(&remote.key(FILE))? };
    let Some(there) = there else { return Ok(()) };
    let record: Prepared =
        meta::parse(&there.bytes, &client.url(&remote.key(FILE)), SCHEMA, "a prepared run")?;
    for StreamFile { file, .. } in record.written.iter().flat_map(|w| &w.streams) {
        client.download(&remote.key(&file.path), &run_dir.join(&file.path), Some(file))?;
    }
    client.download(&remote.key(STREAMS), &run_dir.join(STREAMS), None)?;
    record.write(run_dir)
}

/// A run that is prepared, opened for reading.
#[derive(Clone, Debug)]
pub struct PreparedRun {
    /// What it says about itself.
    pub record: Prepared,
    /// Which documents are in which stream.
    pub streams: Streams,
    files: Vec<StreamFile>,
    run_dir: PathBuf,
}

impl PreparedRun {
    /// Opens a run's streams; `None` for a run that was never prepared.
    ///
    /// # Errors
    /// An input failure for a preparation that is not complete, or files that disagree.
    pub fn open(run_dir: &Path) -> Result<Option<Self>> {
        let Some(record) = Prepared::read(run_dir)? else { return Ok(None) };
        let Some(written) = &record.written else {
            let what = format!("run `{}` is not prepared to the end", record.run_id);
            return Err(Failure::input(what)
                .hint("run 00_prepare_data again with this RUN_ID until it exits with 0"));
        };
        let files = written.streams.clone();
        let streams = Streams::load(run_dir)?;
        let sizes = (0..streams.count).map(|i| streams.range(i)).map(|r| r.end - r.start);
        if !sizes.eq(files.iter().map(|f| f.documents)) {
            let (file, other) = (run_dir.join(FILE), crate::text::streams::FILE);
            let what = format!("`{}` and {other} hold different streams", file.display());
            return Err(Failure::input(what).hint("prepare the data again under a new RUN_ID"));
        }
        Ok(Some(Self { record, streams, files, run_dir: run_dir.to_owned() }))
    }

    /// The documents of all streams; a stream's file is opened when its documents are read.
    ///
    /// # Errors
    /// Names that are not of data files.
    pub fn dataset(&self) -> Result<Dataset> {
        let file = |f: &StreamFile| (self.run_dir.join(&f.file.path), f.documents);
        Ok(Dataset::of_files(self.files.iter().map(file).collect())?)
    }

    /// Refuses a model other than the one that the report and the chat template are of.
    ///
    /// # Errors
    /// A usage failure that names both.
    pub fn must_match(&self, model: &ModelRecord) -> Result<()> {
        let mine = &self.record.model;
        if mine == model {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "run `{}` was prepared for model {mine:?}, now it is {model:?}",
            self.record.run_id
        ))
        .hint("restore the model, or prepare the data again under a new RUN_ID"))
    }

    /// Checks that a stream's file is the one that was written.
    ///
    /// # Errors
    /// An input failure that names the file and what differs.
    pub fn verify(&self, stream: usize) -> Result<()> {
        let Some(StreamFile { file: expected, .. }) = self.files.get(stream) else { return Ok(()) };
        let path = self.run_dir.join(&expected.path);
        let found = ShardFile::of(&path, &self.run_dir)?;
        if found == *expected {
            return Ok(());
        }
        let say = |f: &ShardFile| format!("{} bytes with blake3 {}", f.bytes, f.blake3);
        let what = format!(
            "`{}` has changed: {FILE} says {}, it has {}",
            path.display(),
            say(expected),
            say(&found)
        );
        Err(Failure::input(what).hint("prepare the data again under a new RUN_ID"))
    }
}
