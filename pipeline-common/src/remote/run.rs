//! What all streams of a remote run share: its `meta.json`, its manifests, its completion.

use super::{
    Client, RemoteError,
    client::{Object, Version},
};
use crate::{
    shard::{Committed, manifest, reader::MANIFEST},
    stage::{meta::META, store::Pointer},
};

type Result<T> = std::result::Result<T, RemoteError>;

/// A capture's objects.
#[derive(Clone, Debug)]
pub struct RemoteRun {
    client: Client,
    run_id: String,
}

impl RemoteRun {
    /// The run `run_id` in a store.
    pub fn new(client: Client, run_id: impl Into<String>) -> Self {
        Self { client, run_id: run_id.into() }
    }

    /// The store.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The key of a path within the run.
    pub fn key(&self, path: &str) -> String {
        format!("runs/{}/{path}", self.run_id)
    }

    /// The key of a stream's manifest.
    pub fn manifest_key(&self, worker: usize) -> String {
        self.key(&format!("workers/{worker}.jsonl"))
    }

    /// Puts `mine` where there is nothing yet; what is there then.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn agree(&self, path: &str, mine: &[u8]) -> Result<Object> {
        let key = self.key(path);
        loop {
            if let Some(there) = self.client.get(&key)? {
                return Ok(there);
            }
            self.client.put_over(&key, mine, None)?;
        }
    }

    /// The manifest lines of a stream.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn lines(&self, worker: usize) -> Result<Vec<Committed>> {
        let key = self.manifest_key(worker);
        let Some(object) = self.client.get(&key)? else { return Ok(vec![]) };
        Ok(manifest::parse(self.client.url(&key).as_ref(), &object.bytes)?)
    }

    /// Publishes the finished run: the manifest of all shards, then `meta.json` with the totals.
    /// The latter replaces the version without totals, `begun`, so one process alone completes the
    /// run; returns whether it was this one.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn complete(&self, lines: &[Committed], meta: &[u8], begun: &Version) -> Result<bool> {
        self.client.put(&self.key(MANIFEST), &manifest::to_bytes(lines)?)?;
        Ok(self.client.put_over(&self.key(META), meta, Some(begun))?.is_some())
    }

    /// Points the store's pointer file at the run.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn publish(&self, pointer: Pointer) -> Result<()> {
        self.client.put(pointer.file(), format!("{}\n", self.run_id).as_bytes()).map(drop)
    }
}
