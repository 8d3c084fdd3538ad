//! Shards brought to where they are read: from a store that is not local, or to a node's own disk.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{Client, args::Staging, mirror::Mirror};
use crate::{
    shard::{ShardFile, format, manifest, reader::MANIFEST},
    stage::{
        Context, Result, atomic,
        meta::META,
        store::{Pointer, Store, node_scratch},
    },
};

/// Files fetched at a time.
const FETCHES: usize = 4;

/// Finds runs in the local store or a remote one, and their shards.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    client: Option<Client>,
    staging: Staging,
    /// The remote store is the store; the local one only a working copy on this node.
    remote_first: bool,
}

impl Reader {
    /// A reader of `store`, and of `client`'s where files are not local.
    pub fn new(store: Store, client: Option<Client>, staging: Staging, remote_first: bool) -> Self {
        Self { store, client, staging, remote_first }
    }

    /// Whether runs live in an object store, and the local one is this node's alone.
    pub fn is_remote(&self) -> bool {
        self.remote_first
    }

    /// The local store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The directory of an existing run as [`Store::find`] does; what describes a run that is only
    /// remote is fetched first.
    ///
    /// # Errors
    /// As [`Store::find`]; [`super::RemoteError`] naming the object.
    pub fn find(&self, explicit: Option<&str>, pointer: Pointer) -> Result<(String, PathBuf)> {
        let Some(client) = &self.client else { return self.store.find(explicit, pointer) };
        if explicit.is_none() {
            let local = self.store.root().join(pointer.file());
            let stale = self.remote_first || !local.exists();
            if let Some(object) = stale.then(|| client.get(pointer.file())).transpose()?.flatten() {
                atomic::write(&local, &object.bytes)?;
            }
        }
        let named = fs_err::read_to_string(self.store.root().join(pointer.file()));
        let id = explicit.map_or_else(|| named.unwrap_or_default(), str::to_owned);
        if let Ok(dir) = self.store.run_dir(id.trim(), pointer) {
            match pointer {
                Pointer::Training => Mirror::new(client.clone(), id.trim(), &dir).pull()?,
                Pointer::Capture => describe(client, id.trim(), &dir)?,
            }
        }
        self.store.find(explicit, pointer)
    }

    /// The directory to read one hook's shards of a capture from, all of them in place.
    ///
    /// # Errors
    /// [`super::RemoteError`] naming the object; I/O errors; manifest lines that cannot be read.
    pub fn stage(
        &self,
        context: &Context,
        run_id: &str,
        run_dir: &Path,
        hook: &str,
    ) -> Result<PathBuf> {
        let lines = manifest::read(&run_dir.join(MANIFEST))?;
        let files: Vec<ShardFile> = lines
            .into_iter()
            .flat_map(|line| {
                let hooks = line.hooks.into_iter().filter(|h| h.hook == hook).map(|h| h.file);
                hooks.chain([line.tokens]).collect::<Vec<_>>()
            })
            .collect();
        let local = |file: &ShardFile| is_there(&run_dir.join(&file.path), file);
        let read_in_place = match self.staging {
            Staging::Never => true,
            Staging::Auto => self.client.is_none() || files.iter().all(local),
            // The working copy of a remote store is on the node's own disk already.
            Staging::Always => self.remote_first && files.iter().all(local),
        };
        if read_in_place {
            return Ok(run_dir.to_owned());
        }
        let target = if self.remote_first { run_dir.to_owned() } else { self.scratch(run_id) };
        let job = Staged { client: self.client.as_ref(), run_id, from: run_dir, to: &target };
        job.fetch_all(context, &files)?;
        if target != run_dir {
            for name in [META, MANIFEST] {
                atomic::write(&target.join(name), &fs_err::read(run_dir.join(name))?)?;
            }
        }
        Ok(target)
    }

    /// Where a run is copied to; its name holds the store's, since other stores have equal runs.
    fn scratch(&self, run_id: &str) -> PathBuf {
        let store = std::path::absolute(self.store.root()).unwrap_or_default();
        let digest = format::digest_bytes(store.as_os_str().as_encoded_bytes());
        node_scratch().join(format!("staged-{}", &digest[..8])).join(run_id)
    }

    /// What keeps a training's directory in the remote store, if there is one.
    pub fn mirror(&self, run_id: &str, dir: &Path) -> Option<Mirror> {
        self.client.clone().map(|client| Mirror::new(client, run_id, dir))
    }

    /// Points the remote store's pointer file at a run, if there is one.
    ///
    /// # Errors
    /// [`super::RemoteError`] naming the object.
    pub fn publish(&self, pointer: Pointer, run_id: &str) -> Result<()> {
        if let Some(client) = &self.client {
            client.put(pointer.file(), format!("{run_id}\n").as_bytes())?;
        }
        Ok(())
    }
}

/// Fetches what says which shards a complete capture has.
fn describe(client: &Client, run_id: &str, dir: &Path) -> Result<()> {
    if dir.join(MANIFEST).exists() {
        return Ok(());
    }
    for name in [MANIFEST, META] {
        if let Some(object) = client.get(&format!("runs/{run_id}/{name}"))? {
            atomic::write(&dir.join(name), &object.bytes)?;
        }
    }
    Ok(())
}

fn is_there(path: &Path, file: &ShardFile) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == file.bytes)
}

/// Files of a run on their way from one directory, or a store, to another.
struct Staged<'a> {
    client: Option<&'a Client>,
    run_id: &'a str,
    from: &'a Path,
    to: &'a Path,
}

impl Staged<'_> {
    /// A few at a time.
    fn fetch_all(&self, context: &Context, files: &[ShardFile]) -> Result<()> {
        let total = files.iter().map(|file| file.bytes >> 20).sum();
        let progress = Mutex::new(context.progress("staging shards", total, "MiB"));
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                context.leave_if_asked("staged files are kept")?;
                self.fetch(file)?;
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.advance(file.bytes >> 20, 0, "");
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..FETCHES).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn fetch(&self, file: &ShardFile) -> Result<()> {
        let (from, to) = (self.from.join(&file.path), self.to.join(&file.path));
        if is_there(&to, file) && format::digest(&to)?.0 == file.blake3 {
            return Ok(());
        }
        match self.client {
            Some(client) if from == to || !is_there(&from, file) => {
                let key = format!("runs/{}/{}", self.run_id, file.path);
                Ok(client.download(&key, &to, Some(file))?)
            }
            // A reader compares each shard with the manifest when it opens it.
            _ => copy(&from, &to),
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let partial = atomic::partial_path(to);
    fs_err::copy(from, &partial)?;
    Ok(atomic::commit(&partial, to)?)
}
