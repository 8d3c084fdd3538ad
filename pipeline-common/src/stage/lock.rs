//! One process per stream and per training.
//!
//! After a lost node SLURM may start a job again while its old process still runs. The lock ends
//! with the process, however it ends.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use super::{Failure, Result};

/// Held while the file is open.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, whose directory exists.
    ///
    /// # Errors
    /// [`Failure::stopped`] if another process holds it, so that a job is queued again and finds
    /// the work done or the lock free; an unavailable file system.
    pub fn take(path: &Path, what: &str) -> Result<Self> {
        let file = open(path)?;
        file.try_lock().map_err(|e| taken(path, what, e))?;
        Ok(Self { _file: file })
    }

    /// Whether nobody holds the lock at `path`, whose directory exists; those who look do not disturb one
    /// another.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn must_be_free(path: &Path, what: &str) -> Result<()> {
        open(path)?.try_lock_shared().map_err(|e| taken(path, what, e))
    }

    /// Waits for the lock at `path`, whose directory exists: for files that several workers write
    /// in passing.
    ///
    /// # Errors
    /// An unavailable file system.
    pub fn wait(path: &Path) -> Result<Self> {
        let file = open(path)?;
        file.lock().map_err(|e| no_locks(path, &e))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(fs_err::File::create(path)?.into_parts().0)
}

fn taken(path: &Path, what: &str, error: TryLockError) -> Failure {
    match error {
        TryLockError::WouldBlock => Failure::stopped(format!("another process works on {what}")),
        TryLockError::Error(e) => no_locks(path, &e),
    }
}

fn no_locks(path: &Path, error: &std::io::Error) -> Failure {
    Failure::unavailable(format!("cannot lock `{}`: {error}", path.display()))
        .hint("the file system must allow flock (Lustre: mount with flock or localflock), or put STORE_DIR elsewhere")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Kind;

    #[test]
    fn the_second_is_told_to_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "x").unwrap();
        assert_eq!(Lock::take(&path, "x").unwrap_err().kind, Kind::Stopped);
        assert_eq!(Lock::must_be_free(&path, "x").unwrap_err().kind, Kind::Stopped);
        drop(first);
        Lock::must_be_free(&path, "x").unwrap();
        Lock::take(&path, "x").unwrap();
    }
}
