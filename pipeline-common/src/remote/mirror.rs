//! A training's directory in a remote store: sent after each checkpoint, fetched on another node.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Client, RemoteError};
use crate::{
    shard::{ShardFile, format},
    stage::{heartbeat, meta::META},
};

/// Directories of which files that are gone here go there too: old checkpoints, and the curves of
/// processes before this one.
const FOLLOWED: [&str; 2] = ["checkpoints", "tensorboard"];
/// The file that names the checkpoint to go on at; sent after it.
const LATEST: &str = "checkpoints/latest.json";

type Result<T> = std::result::Result<T, RemoteError>;

/// Keeps a directory's files as objects. A training has one writer at a time.
#[derive(Debug)]
pub struct Mirror {
    client: Client,
    run_id: String,
    dir: PathBuf,
    /// Length and time of each file when it was sent.
    sent: HashMap<String, (u64, SystemTime)>,
}

impl Mirror {
    /// The run `run_id`, whose local directory is `dir`.
    pub fn new(client: Client, run_id: &str, dir: &Path) -> Self {
        Self { client, run_id: run_id.into(), dir: dir.to_owned(), sent: HashMap::new() }
    }

    /// Sends what changed: first contents, then the files that say what counts; old checkpoints that
    /// are gone here go there too.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object; I/O errors.
    pub fn push(&mut self) -> Result<()> {
        let files = local_files(&self.dir, &self.dir)?;
        self.send(&files)?;
        // Where a complete training was fetched, its checkpoints were not.
        if !files.iter().any(|name| name == LATEST) {
            return Ok(());
        }
        for directory in FOLLOWED {
            for name in self.client.list(&self.key(directory))?.objects {
                let name = format!("{directory}/{name}");
                if !files.contains(&name) {
                    self.client.delete(&self.key(&name))?;
                    self.sent.remove(&name);
                }
            }
        }
        Ok(())
    }

    /// Sends what changed in one of the training's directories.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_directory(&mut self, name: &str) -> Result<()> {
        let files = local_files(&self.dir, &self.dir.join(name))?;
        self.send(&files)
    }

    /// Sends one of the training's files.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_file(&mut self, name: &str) -> Result<()> {
        self.send(&[name.to_owned()])
    }

    fn send(&mut self, files: &[String]) -> Result<()> {
        for name in files {
            let path = self.dir.join(name);
            let found = fs_err::metadata(&path)?;
            let stamp = (found.len(), found.modified()?);
            if self.sent.get(name) == Some(&stamp) {
                continue;
            }
            let (blake3, bytes) = format::digest(&path)?;
            self.client.upload(
                &path,
                &self.key(name),
                &ShardFile { path: name.clone(), bytes, blake3 },
            )?;
            self.sent.insert(name.clone(), stamp);
        }
        Ok(())
    }

    /// Fetches a training that is further in the store than here: all files but checkpoints, of
    /// which an unfinished training needs the latest.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object; I/O errors.
    pub fn pull(&self) -> Result<()> {
        if self.dir.join(META).exists() {
            return Ok(());
        }
        let complete = self.client.head(&self.key(META))?.is_some();
        let latest = self.client.get(&self.key(LATEST))?;
        let here = std::fs::read(self.dir.join(LATEST)).ok();
        let there = latest.as_ref().map(|object| object.bytes.as_slice());
        if !complete && step(there) <= step(here.as_deref()) {
            return Ok(());
        }
        let checkpoint = field(there, "file").and_then(|file| file.as_str().map(str::to_owned));
        let mut names = self.remote_files("")?;
        names.retain(|name| match name.strip_prefix("checkpoints/") {
            Some(file) => !complete && (name == LATEST || checkpoint.as_deref() == Some(file)),
            None => true,
        });
        names.sort_by_key(|name| rank(name));
        tracing::info!("fetching `{}`", self.client.url(&self.key("")));
        names
            .iter()
            .try_for_each(|name| self.client.download(&self.key(name), &self.dir.join(name), None))
    }

    fn remote_files(&self, below: &str) -> Result<Vec<String>> {
        let found = self.client.list(&self.key(below))?;
        let mut names: Vec<String> =
            found.objects.into_iter().map(|name| format!("{below}{name}")).collect();
        for directory in found.directories {
            names.extend(self.remote_files(&format!("{below}{directory}/"))?);
        }
        Ok(names)
    }

    fn key(&self, name: &str) -> String {
        format!("runs/{}/{name}", self.run_id)
    }
}

/// Files that say what counts come after those they speak of.
fn rank(name: &str) -> u8 {
    match name {
        META => 2,
        LATEST => 1,
        _ => 0,
    }
}

fn field(latest: Option<&[u8]>, name: &str) -> Option<serde_json::Value> {
    serde_json::from_slice::<serde_json::Value>(latest?).ok()?.get(name).cloned()
}

fn step(latest: Option<&[u8]>) -> Option<u64> {
    field(latest, "step")?.as_u64()
}

/// All finished files below `begin`, by name relative to `dir`, those that say what counts last;
/// locks and progress files are this node's own.
fn local_files(dir: &Path, begin: &Path) -> Result<Vec<String>> {
    let mut names = vec![];
    let mut folders = vec![begin.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            if path.is_dir() {
                if name != heartbeat::DIRECTORY {
                    folders.push(path);
                }
            } else if ![".lock", ".partial"].iter().any(|end| name.ends_with(end)) {
                names.push(name);
            }
        }
    }
    names.sort_by_key(|name| rank(name));
    Ok(names)
}
