//! The manifest: one JSON line per committed shard.
//!
//! A worker appends to `workers/<i>.jsonl`; the finished run has all lines in `manifest.jsonl`.
//! A torn last line (no line feed) is dropped with a warning; anything else wrong is an error
//! that names the line and its offset.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ShardError, Stats};

/// One file of a committed shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Path relative to the run's directory.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// blake3 of the file.
    pub blake3: String,
}

/// The activations of one hook in a committed shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookFile {
    /// The hook's module path.
    pub hook: String,
    /// The file.
    pub file: ShardFile,
    /// Statistics of its rows.
    pub stats: Stats,
}

/// Tokens without a row, beside special ones, by the policy that dropped them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Among the first positions of their sentence.
    #[serde(default)]
    pub first: u64,
    /// With a row of too large a norm.
    #[serde(default)]
    pub norm: u64,
}

impl Dropped {
    /// Whether no policy dropped anything.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the counts of another shard or batch.
    pub fn merge(&mut self, other: Self) {
        self.first += other.first;
        self.norm += other.norm;
    }
}

/// A manifest line: a shard whose files are all in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// The worker that wrote it.
    pub worker: usize,
    /// The shard's number within the worker, from 0.
    pub shard: usize,
    /// Whether the worker was stopped before the shard was full: the next start goes on with it,
    /// and the line of the whole shard replaces this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// Whether its files were found damaged: the next start captures its documents again, and the
    /// line of the new files replaces this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recapture: bool,
    /// First document read for it.
    pub first_document: u64,
    /// One past the last document read for it.
    pub end_document: u64,
    /// Sentences with at least one row.
    pub sentences: u64,
    /// Rows in every hook's file.
    pub rows: u64,
    /// Tokens fed to the model, dropped ones included.
    pub tokens_seen: u64,
    /// Of those, what policies dropped.
    #[serde(default, skip_serializing_if = "Dropped::is_none")]
    pub dropped: Dropped,
    /// The token file.
    pub tokens: ShardFile,
    /// One file per hook, in the run's order.
    pub hooks: Vec<HookFile>,
}

/// Reads all whole lines of a manifest; a missing file has none.
///
/// # Errors
/// I/O errors, and [`ShardError::Manifest`] for a line that cannot be read.
pub fn read(path: &Path) -> Result<Vec<Committed>, ShardError> {
    read_each(path)?.into_iter().collect()
}

/// Reads a manifest line by line, whatever the other lines are.
///
/// # Errors
/// I/O errors alone; [`ShardError::Manifest`] stands in the place of each line that cannot be
/// read.
pub fn read_each(path: &Path) -> Result<Vec<Result<Committed, ShardError>>, ShardError> {
    let text = match fs_err::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(parse_each(path, &text))
}

/// Parses all whole lines of a manifest; `path` is for messages.
///
/// # Errors
/// [`ShardError::Manifest`] for a line that cannot be read.
pub fn parse(path: &Path, text: &[u8]) -> Result<Vec<Committed>, ShardError> {
    parse_each(path, text).into_iter().collect()
}

fn parse_each(path: &Path, text: &[u8]) -> Vec<Result<Committed, ShardError>> {
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        tracing::warn!("manifest `{}`: dropping a torn last line at byte {whole}", path.display());
    }
    let mut offset = 0;
    let mut lines = Vec::new();
    for (i, line) in text[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
        let bad = |e: serde_json::Error| ShardError::Manifest {
            path: path.to_owned(),
            line: i + 1,
            offset,
            // The parser sees one line only, and calls it line 1.
            reason: e.to_string().replace(" at line 1 column ", " at column "),
        };
        lines.push(serde_json::from_slice(line.trim_ascii_end()).map_err(bad));
        offset += line.len();
    }
    lines
}

/// Appends a line durably: this is the commit of the shard. A torn line left by a killed
/// process is cut off first.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn append(path: &Path, committed: &Committed) -> Result<(), ShardError> {
    crate::stage::atomic::cut_torn_line(path)?;
    let line = serde_json::to_string(committed).map_err(std::io::Error::from)?;
    Ok(crate::stage::atomic::append_line(path, &line)?)
}

/// Replaces a manifest.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(path: &Path, lines: &[Committed]) -> Result<(), ShardError> {
    Ok(crate::stage::atomic::write(path, &to_bytes(lines)?)?)
}

/// A manifest as it is stored.
///
/// # Errors
/// If a line cannot be written as JSON.
pub fn to_bytes(lines: &[Committed]) -> Result<Vec<u8>, ShardError> {
    let mut text = vec![];
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(std::io::Error::from)?;
        text.push(b'\n');
    }
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn line(worker: usize, shard: usize) -> Committed {
        let file = ShardFile { path: "tokens/x".into(), bytes: 1, blake3: "00".into() };
        Committed {
            worker,
            shard,
            unfinished: false,
            recapture: false,
            first_document: 0,
            end_document: 2,
            sentences: 2,
            rows: 5,
            tokens_seen: 7,
            dropped: Dropped::default(),
            tokens: file,
            hooks: vec![],
        }
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_then_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jsonl");
        append(&path, &line(0, 0)).unwrap();
        let mut torn = fs_err::read(&path).unwrap();
        torn.extend_from_slice(b"{\"worker\":0,\"sha");
        fs_err::write(&path, torn).unwrap();
        assert_eq!(read(&path).unwrap(), vec![line(0, 0)]);
        append(&path, &line(0, 1)).unwrap();
        assert_eq!(read(&path).unwrap(), vec![line(0, 0), line(0, 1)]);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jsonl");
        append(&path, &line(0, 0)).unwrap();
        let first = fs_err::read(&path).unwrap();
        fs_err::write(&path, [&first[..], b"oops\n", &first[..]].concat()).unwrap();
        match read(&path).unwrap_err() {
            ShardError::Manifest { line, offset, .. } => {
                assert_eq!((line, offset), (2, first.len()))
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn f64_sums_survive_the_text() {
        let mut l = line(0, 0);
        let stats = Stats { sum_norm: 0.1 + 0.2, max_abs: 1.0 / 3.0, ..Stats::default() };
        l.hooks.push(HookFile { hook: "h".into(), file: l.tokens.clone(), stats });
        let back: Committed = serde_json::from_str(&serde_json::to_string(&l).unwrap()).unwrap();
        assert_eq!(back, l);
    }
}
