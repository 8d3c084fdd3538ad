//! One stream's shards in a store: brought up to date, taken over, cleaned up.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{RemoteError, RemoteRun, client::Version};
use crate::shard::{Committed, ShardFile, manifest};

type Result<T> = std::result::Result<T, RemoteError>;

/// A stream's objects, and the version of its manifest that this process has seen.
#[derive(Debug)]
pub struct Stream {
    run: RemoteRun,
    worker: usize,
    run_dir: PathBuf,
    keep: bool,
    lines: Vec<Committed>,
    seen: Option<Version>,
}

impl Stream {
    /// Looks at what a store has of a stream. Without `keep`, local activation files go once the
    /// remote manifest lists them.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn open(run: RemoteRun, worker: usize, run_dir: &Path, keep: bool) -> Result<Self> {
        let key = run.manifest_key(worker);
        let object = run.client().get(&key)?;
        let (lines, seen) = match object {
            None => (vec![], None),
            Some(o) => {
                (manifest::parse(run.client().url(&key).as_ref(), &o.bytes)?, Some(o.version))
            }
        };
        Ok(Self { run, worker, run_dir: run_dir.to_owned(), keep, lines, seen })
    }

    /// Makes local and remote shards one: where the store is ahead its manifest is taken over, where
    /// it lags the missing shards are uploaded; an unfinished last shard is fetched to be gone on
    /// with. Returns the stream's lines; `local` are those on this machine.
    ///
    /// # Errors
    /// [`RemoteError::Differs`] if one does not continue the other; as [`Self::sync`].
    pub fn catch_up(&mut self, local: Vec<Committed>) -> Result<Vec<Committed>> {
        self.must_continue(&local)?;
        let end = |lines: &[Committed]| lines.last().map(|line| line.end_document);
        let lines = if end(&self.lines) > end(&local) {
            manifest::write(&self.local(&format!("workers/{}.jsonl", self.worker)), &self.lines)?;
            self.lines.clone()
        } else {
            self.sync(local.clone())?;
            local
        };
        if let Some(line) = lines.last().filter(|line| line.unfinished) {
            for file in files(line).filter(|file| !self.local(&file.path).exists()) {
                let key = self.run.key(&file.path);
                self.run.client().download(&key, &self.local(&file.path), Some(file))?;
            }
        }
        Ok(lines)
    }

    /// The whole shards of both sides are the same as far as both go, but for those that either
    /// side has to capture again.
    fn must_continue(&self, local: &[Committed]) -> Result<()> {
        let whole = |line: &&Committed| !line.unfinished;
        let pairs = self.lines.iter().filter(whole).zip(local.iter().filter(whole));
        let mut differing = pairs.filter(|(a, b)| a != b && !a.recapture && !b.recapture);
        match differing.next().map(|(_, line)| line.shard) {
            None => Ok(()),
            Some(shard) => Err(RemoteError::Differs {
                worker: self.worker,
                shard,
                url: self.run.client().url(&self.run.manifest_key(self.worker)),
            }),
        }
    }

    /// Makes the store hold `lines`: files first, each verified, then the manifest over the version
    /// seen, then what it replaced goes.
    ///
    /// # Errors
    /// [`RemoteError::Taken`] if another process has put the manifest since; [`RemoteError`] naming
    /// the object.
    pub fn sync(&mut self, lines: Vec<Committed>) -> Result<()> {
        let client = self.run.client();
        if lines != self.lines {
            let new = |line: &&Committed| !line.recapture && !self.lines.contains(line);
            for line in lines.iter().filter(new) {
                for file in files(line) {
                    client.upload(&self.local(&file.path), &self.run.key(&file.path), file)?;
                }
                tracing::debug!("uploaded shard {} of worker {}", line.shard, line.worker);
            }
            let key = self.run.manifest_key(self.worker);
            let put = client.put_over(&key, &manifest::to_bytes(&lines)?, self.seen.as_ref())?;
            self.seen = Some(put.ok_or(RemoteError::Taken { worker: self.worker })?);
            let listed: BTreeSet<&str> = lines.iter().flat_map(paths).collect();
            for path in self.lines.iter().flat_map(paths).filter(|path| !listed.contains(path)) {
                client.delete(&self.run.key(path))?;
            }
            self.lines = lines;
        }
        if self.keep { Ok(()) } else { self.remove_local() }
    }

    /// Removes local activations of whole shards; token files are small and stay.
    fn remove_local(&self) -> Result<()> {
        for line in self.lines.iter().filter(|line| !line.unfinished) {
            for hook in &line.hooks {
                match fs_err::remove_file(self.local(&hook.file.path)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes objects of the stream that no manifest lists: uploads whose process was killed
    /// before it could list them. Only for a stream that is complete, whose manifest nobody puts
    /// any more.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn sweep(&self) -> Result<()> {
        let listed: BTreeSet<&str> = self.lines.iter().flat_map(paths).collect();
        let directories: BTreeSet<&str> =
            listed.iter().filter_map(|path| path.rsplit_once('/').map(|(dir, _)| dir)).collect();
        let mine = format!("shard-{}-", self.worker);
        for directory in directories {
            for name in self.run.client().list(&self.run.key(directory))?.objects {
                let path = format!("{directory}/{name}");
                if name.starts_with(&mine) && !listed.contains(path.as_str()) {
                    self.run.client().delete(&self.run.key(&path))?;
                }
            }
        }
        Ok(())
    }

    fn local(&self, path: &str) -> PathBuf {
        self.run_dir.join(path)
    }
}

/// All files of a shard.
fn files(line: &Committed) -> impl Iterator<Item = &ShardFile> {
    line.hooks.iter().map(|hook| &hook.file).chain([&line.tokens])
}

/// Their paths in the run.
fn paths(line: &Committed) -> impl Iterator<Item = &str> {
    files(line).map(|file| file.path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        remote::{Client, Location},
        shard::manifest::tests::line,
    };

    /// A stream of a run in `<dir>/bucket`, worked on in `<dir>/<node>`.
    fn stream(dir: &Path, node: &str, keep: bool) -> Stream {
        let location = Location::parse(dir.join("bucket").to_str().unwrap()).unwrap();
        let run = RemoteRun::new(Client::new(location).unwrap(), "r");
        Stream::open(run, 0, &dir.join(node), keep).unwrap()
    }

    /// A shard whose files are on `node`; `bytes` are its tokens.
    fn shard(dir: &Path, node: &str, shard: usize, bytes: &[u8]) -> Committed {
        let path = format!("tokens/shard-0-{shard}.safetensors");
        crate::stage::atomic::write(&dir.join(node).join(&path), bytes).unwrap();
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        let tokens = ShardFile { path, bytes: bytes.len() as u64, blake3 };
        Committed { tokens, end_document: shard as u64 + 1, ..line(0, shard) }
    }

    #[test]
    fn the_second_writer_loses_and_the_first_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (stream(dir.path(), "a", true), stream(dir.path(), "b", true));
        let first = shard(dir.path(), "a", 0, b"tokens");
        shard(dir.path(), "b", 0, b"tokens");
        a.sync(vec![first.clone()]).unwrap();
        assert!(matches!(b.sync(vec![first.clone()]), Err(RemoteError::Taken { worker: 0 })));
        let second = shard(dir.path(), "a", 1, b"more");
        a.sync(vec![first.clone(), second.clone()]).unwrap();
        let mut late = stream(dir.path(), "b", true);
        assert_eq!(late.catch_up(vec![first.clone()]).unwrap(), [first, second]);
    }

    #[test]
    fn shards_that_contradict_the_store_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = stream(dir.path(), "a", true);
        a.sync(vec![shard(dir.path(), "a", 0, b"tokens")]).unwrap();
        let mut b = stream(dir.path(), "b", true);
        let other = shard(dir.path(), "b", 0, b"others");
        assert!(matches!(b.catch_up(vec![other]), Err(RemoteError::Differs { shard: 0, .. })));
    }

    #[test]
    fn a_shard_that_is_captured_again_replaces_the_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [0, 1].map(|n| shard(dir.path(), "a", n, b"tokens"));
        stream(dir.path(), "a", true).sync(lines.to_vec()).unwrap();
        let marked = [Committed { recapture: true, ..lines[0].clone() }, lines[1].clone()].to_vec();
        let mut repairing = stream(dir.path(), "a", true);
        assert_eq!(repairing.catch_up(marked.clone()).unwrap(), marked);
        let object = dir.path().join("bucket/runs/r/tokens/shard-0-0.safetensors");
        assert!(object.exists(), "nothing is deleted before it is captured again");
        let again = shard(dir.path(), "a", 0, b"better");
        repairing.sync(vec![again.clone(), lines[1].clone()]).unwrap();
        assert_eq!(fs_err::read(object).unwrap(), b"better");
        let mut later = stream(dir.path(), "a", true);
        assert_eq!(later.catch_up(vec![]).unwrap(), [again, lines[1].clone()]);
    }

    #[test]
    fn objects_that_no_manifest_lists_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = stream(dir.path(), "a", true);
        a.sync(vec![shard(dir.path(), "a", 0, b"tokens")]).unwrap();
        let tokens = dir.path().join("bucket/runs/r/tokens");
        let (orphan, other) = ("shard-0-1.until-7.safetensors", "shard-1-0.safetensors");
        for name in [orphan, other] {
            fs_err::write(tokens.join(name), "x").unwrap();
        }
        a.sweep().unwrap();
        assert!(!tokens.join(orphan).exists() && tokens.join(other).exists());
        assert!(tokens.join("shard-0-0.safetensors").exists());
    }
}
