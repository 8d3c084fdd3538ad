//! One repository of the hub at one commit; the only file that knows the hub's client.
//!
//! What the client (hf-hub 1.0) leaves to its caller: it gives up on a locked file after 10 s, it
//! keeps the body of an error response as if it were the file, and it has no connection timeout.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeAny, repository::RepoTreeEntry,
};

use super::Hub;
use crate::{stage::atomic, text::TextError};

/// Compute nodes often drop packets instead of refusing them.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Each wait for another process's download lasts 10 s.
const LOCK_WAITS: usize = 60;

/// Downloads of a file that arrives with the wrong size.
const ATTEMPTS: usize = 3;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RepositoryKind {
    Model,
    Dataset,
}

/// A repository at a commit, on the hub or in the cache alone.
pub(in crate::text) struct Repository {
    kind: RepositoryKind,
    id: String,
    revision: String,
    commit: String,
    hub: Hub,
    access: Access,
}

enum Access {
    /// Files on the hub with their sizes in bytes.
    Online(HFRepositorySync<RepoTypeAny>, BTreeMap<PathBuf, u64>),
    /// A snapshot in the cache, and why nothing else is to be had.
    Cached(PathBuf, &'static str),
}

impl Repository {
    /// Finds the commit of a revision, on the hub or, offline, in the cache.
    pub(super) fn open(
        hub: &Hub,
        kind: RepositoryKind,
        id: &str,
        revision: &str,
    ) -> Result<Self, TextError> {
        let client = client(hub).map_err(|e| explain(hub, &kind.of(id), e))?;
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        let handle = client.repository(kind.repo_type(), owner, name);
        let of = |commit, access| {
            let (id, revision, hub) = (id.to_owned(), revision.to_owned(), hub.clone());
            Self { kind, id, revision, commit, hub, access }
        };
        let cached = |why| {
            let dir =
                handle.snapshot_download().revision(revision).local_files_only(true).send()?;
            let commit = dir.file_name().map(|n| n.to_string_lossy().into_owned());
            Ok::<_, HFError>(of(commit.unwrap_or_default(), Access::Cached(dir, why)))
        };
        if hub.offline {
            return cached("HF_HUB_OFFLINE is set").map_err(|e| explain(hub, &kind.of(id), e));
        }
        match kind.commit(&client, owner, name, revision) {
            Ok(commit) => {
                let tree = handle.list_tree().revision(commit.as_str()).recursive(true).send();
                let tree = tree.map_err(|e| explain(hub, &kind.of(id), e))?;
                Ok(of(commit, Access::Online(handle, sizes(tree))))
            }
            Err(e) => {
                let error = explain(hub, &format!("{} at `{revision}`", kind.of(id)), e);
                let TextError::Unreachable { .. } = error else { return Err(error) };
                let fallback = cached("the hub does not answer").map_err(|_not_cached| error)?;
                tracing::warn!(
                    "hub `{}` does not answer: using {} from the cache",
                    hub.endpoint,
                    kind.of(id)
                );
                Ok(fallback)
            }
        }
    }

    /// The commit, 40 hexadecimal digits.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Whether only what is in the cache can be had.
    pub fn is_cached(&self) -> bool {
        matches!(self.access, Access::Cached(..))
    }

    /// The files there are, in order.
    pub fn names(&self) -> Vec<PathBuf> {
        match &self.access {
            Access::Online(_, sizes) => sizes.keys().cloned().collect(),
            Access::Cached(dir, _) => {
                let mut names = Vec::new();
                list(dir, Path::new(""), &mut names);
                names.sort();
                names
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.access {
            Access::Online(_, sizes) => sizes.contains_key(Path::new(name)),
            Access::Cached(dir, _) => dir.join(name).is_file(),
        }
    }

    /// Fetches a file without which the repository is no model.
    pub fn need(&self, name: &str) -> Result<PathBuf, TextError> {
        if !self.is_cached() && !self.has(name) {
            let (id, missing) = (self.id.clone(), name.to_owned());
            return Err(TextError::NotAModel { id, missing });
        }
        self.fetch(Path::new(name))
    }

    /// The path of a file in the cache, downloading it if it is not there.
    pub fn fetch(&self, name: &Path) -> Result<PathBuf, TextError> {
        match &self.access {
            Access::Online(handle, sizes) if stays_inside(name) => {
                let path = self.download(handle, name, sizes.get(name).copied())?;
                self.remember(&path, name)?;
                Ok(path)
            }
            Access::Cached(dir, _) if stays_inside(name) && dir.join(name).is_file() => {
                Ok(dir.join(name))
            }
            _ => Err(self.not_there(name)),
        }
    }

    /// The error for a file that is in neither place.
    pub fn not_there(&self, name: &Path) -> TextError {
        let what = self.file(name);
        match &self.access {
            Access::Online(..) => TextError::NotOnHub { endpoint: self.hub.endpoint.clone(), what },
            Access::Cached(_, why) => {
                TextError::NotCached { what, cache: self.hub.cache.clone(), why }
            }
        }
    }

    fn download(
        &self,
        handle: &HFRepositorySync<RepoTypeAny>,
        name: &Path,
        size: Option<u64>,
    ) -> Result<PathBuf, TextError> {
        let (mut waits, mut attempts) = (0, 0);
        loop {
            let filename = name.to_string_lossy().into_owned();
            match handle.download_file().filename(filename).revision(self.commit.as_str()).send() {
                Ok(path) => {
                    let found = fs::metadata(&path)?.len();
                    if size.is_none_or(|size| size == found) {
                        return Ok(path);
                    }
                    forget(&path)?;
                    attempts += 1;
                    let why = format!("{found} bytes arrived instead of {}", size.unwrap_or(0));
                    if attempts == ATTEMPTS {
                        return Err(self.unreachable(name, why.into()));
                    }
                    tracing::warn!("{}: {why}; downloading it again", self.file(name));
                }
                Err(HFError::CacheLockTimeout { .. }) if waits < LOCK_WAITS => {
                    waits += 1;
                    tracing::info!("{}: waiting for another process's download", self.file(name));
                }
                Err(e) => return Err(explain(&self.hub, &self.file(name), e)),
            }
        }
    }

    /// Notes which commit the revision is, for later runs that are offline.
    fn remember(&self, path: &Path, name: &Path) -> Result<(), TextError> {
        let above = name.components().count() + 2;
        let Some(root) = path.ancestors().nth(above) else { return Ok(()) };
        let note = root.join("refs").join(&self.revision);
        let known = self.revision == self.commit || !stays_inside(Path::new(&self.revision));
        if known || fs::read_to_string(&note).is_ok_and(|c| c == self.commit) {
            return Ok(());
        }
        Ok(atomic::write(&note, self.commit.as_bytes())?)
    }

    fn unreachable(&self, name: &Path, source: crate::text::error::BoxedError) -> TextError {
        let endpoint = self.hub.endpoint.clone();
        TextError::Unreachable { endpoint, what: self.file(name), source }
    }

    fn file(&self, name: &Path) -> String {
        format!("`{}` of {}", name.display(), self.kind.of(&self.id))
    }
}

impl RepositoryKind {
    fn of(self, id: &str) -> String {
        format!("{} `{id}`", self.repo_type())
    }

    fn repo_type(self) -> RepoTypeAny {
        match self {
            Self::Model => RepoTypeAny::Model,
            Self::Dataset => RepoTypeAny::Dataset,
        }
    }

    fn commit(
        self,
        client: &HFClientSync,
        owner: &str,
        name: &str,
        revision: &str,
    ) -> Result<String, HFError> {
        let commit = match self {
            Self::Model => client.model(owner, name).info().revision(revision).send()?.sha,
            Self::Dataset => client.dataset(owner, name).info().revision(revision).send()?.sha,
        };
        commit.ok_or_else(|| HFError::malformed_response("the commit of the revision"))
    }
}

fn client(hub: &Hub) -> Result<HFClientSync, HFError> {
    let http = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
        .build()?;
    let builder = HFClient::builder().endpoint(&hub.endpoint).cache_dir(&hub.cache).client(http);
    match &hub.token {
        Some(token) => builder.token(token).build_sync(),
        None => builder.build_sync(),
    }
}

/// The client's error in this program's words.
fn explain(hub: &Hub, what: &str, error: HFError) -> TextError {
    let (endpoint, what) = (hub.endpoint.clone(), what.to_owned());
    match error {
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => TextError::NotOnHub { endpoint, what },
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            TextError::Refused { endpoint, what, token: hub.token.is_some(), source: error.into() }
        }
        HFError::LocalEntryNotFound { .. } => {
            TextError::NotCached { what, cache: hub.cache.clone(), why: "HF_HUB_OFFLINE is set" }
        }
        HFError::Io(e) => TextError::Io(e),
        error => TextError::Unreachable { endpoint, what, source: error.into() },
    }
}

fn sizes(tree: Vec<RepoTreeEntry>) -> BTreeMap<PathBuf, u64> {
    tree.into_iter()
        .filter_map(|entry| match entry {
            RepoTreeEntry::File { path, size, .. } => Some((PathBuf::from(path), size)),
            RepoTreeEntry::Directory { .. } => None,
        })
        .collect()
}

/// Names come from the network and from index files; none may leave its repository.
fn stays_inside(name: &Path) -> bool {
    name.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Removes a file and the blob it links to.
fn forget(path: &Path) -> Result<(), TextError> {
    let blob = fs::canonicalize(path)?;
    fs::remove_file(path)?;
    if blob.exists() {
        fs::remove_file(blob)?;
    }
    Ok(())
}

fn list(root: &Path, below: &Path, names: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
        let name = below.join(entry.file_name());
        // A link to a blob that is gone is no file.
        if entry.path().is_dir() {
            list(root, &name, names);
        } else if entry.path().is_file() {
            names.push(name);
        }
    }
}
