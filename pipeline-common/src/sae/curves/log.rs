//! Files of JSON lines that grow with a training and go back with it.
//!
//! A checkpoint knows how long its logs were; a training that goes on there cuts off what came
//! later and writes it again.

use std::{io::Write, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::{sae::SaeError, stage::atomic};

/// A log and all of its entries, in the order in which they were written.
#[derive(Debug)]
pub struct Log<T> {
    file: fs_err::File,
    length: u64,
    entries: Vec<T>,
}

impl<T: Serialize + DeserializeOwned> Log<T> {
    /// Goes on with the first `length` bytes of the file at `path`; the rest is removed.
    ///
    /// # Errors
    /// [`SaeError::Format`] for a file that is shorter or holds something else; I/O errors.
    pub fn open(path: &Path, length: u64) -> Result<Self, SaeError> {
        let bytes = match length {
            0 => vec![],
            _ => start(path, length)?,
        };
        let entries = parse(path, &bytes)?;
        atomic::write(path, &bytes)?;
        let file = fs_err::OpenOptions::new().append(true).open(path)?;
        Ok(Self { file, length, entries })
    }

    /// Adds an entry, which other processes see at once.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn push(&mut self, entry: T) -> Result<(), SaeError> {
        let mut line = serde_json::to_vec(&entry).map_err(std::io::Error::from)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.length += line.len() as u64;
        self.entries.push(entry);
        Ok(())
    }

    /// Makes all entries durable; the log's length.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn sync(&self) -> Result<u64, SaeError> {
        self.file.sync_all()?;
        Ok(self.length)
    }

    /// All entries.
    pub fn entries(&self) -> &[T] {
        &self.entries
    }
}

/// The entries of a log that may be growing, up to the first that is not whole; none where there is
/// no log.
pub fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

/// The first `length` bytes of a file that has them.
fn start(path: &Path, length: u64) -> Result<Vec<u8>, SaeError> {
    let mut bytes = fs_err::read(path)?;
    if (bytes.len() as u64) < length {
        let found = bytes.len();
        let reason = format!("has {found} bytes, but {length} when the checkpoint was written");
        return Err(SaeError::Format { path: path.to_owned(), reason });
    }
    bytes.truncate(length as usize);
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, SaeError> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let entry = |(i, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|e| SaeError::Format {
            path: path.to_owned(),
            reason: format!("line {}: {e}", i + 1),
        })
    };
    lines.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_back_to_where_a_checkpoint_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::<u32>::open(&path, 0).unwrap();
        log.push(1).unwrap();
        let length = log.sync().unwrap();
        log.push(22).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "1\n22\n");
        let mut log = Log::<u32>::open(&path, length).unwrap();
        assert_eq!(log.entries(), [1]);
        fs_err::write(dir.path().join("torn"), "1\n2\n[").unwrap();
        assert_eq!(read::<u32>(&dir.path().join("torn")), [1, 2]);
        assert_eq!(read::<u32>(&dir.path().join("none")), [0; 0]);
        log.push(3).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "1\n3\n");
        assert_eq!(Log::<u32>::open(&path, 0).unwrap().entries(), [0; 0], "no checkpoint");
    }

    #[test]
    fn a_short_and_a_damaged_log_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let error = |bytes: &str, length| {
            fs_err::write(&path, bytes).unwrap();
            Log::<u32>::open(&path, length).unwrap_err().to_string()
        };
        assert!(error("1\n2\n", 6).contains("has 4 bytes, but 6"));
        assert!(error("1\nx\n", 4).contains("line 2"));
        assert!(error("1\n2,2\n", 6).contains("line 2"));
    }
}
