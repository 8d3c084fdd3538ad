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
    /// the work done or the lock free; I/O errors.
    pub fn take(path: &Path, what: &str) -> Result<Self> {
        let file: File = fs_err::File::create(path)?.into_parts().0;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::stopped(format!("another process works on {what}")))
            }
            Err(TryLockError::Error(e)) => Err(e.into()),
        }
    }
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
        drop(first);
        Lock::take(&path, "x").unwrap();
    }
}
