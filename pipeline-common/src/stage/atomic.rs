//! Files that appear whole or not at all.
//!
//! Write to `<name>.partial`, fsync, rename, fsync the directory: after a crash a reader sees the
//! old file or the new one. Appending to a log (`manifest.jsonl`) is one write and one fsync.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use fs_err as fs;

/// The name under which a file is written before it is committed.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Makes a finished `.partial` file durable under its final name.
///
/// # Errors
/// Any I/O error of fsync or rename, naming the path.
pub fn commit(partial: &Path, path: &Path) -> io::Result<()> {
    fs::File::open(partial)?.sync_all()?;
    fs::rename(partial, path)?;
    sync_parent(path)
}

/// Writes a whole file atomically, making its directory first.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = partial_path(path);
    fs::File::create(&partial)?.write_all(bytes)?;
    commit(&partial, path)
}

/// Replaces a whole file without fsync, making its directory first: readers see the old file or the
/// new one, but a crash of the machine may lose both.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = partial_path(path);
    fs::write(&partial, bytes)?;
    fs::rename(partial, path)
}

/// Writes `value` as pretty JSON with a final line feed, atomically.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &json(value)?)
}

/// `value` as [`write_json`] writes it.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn json<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// Moves a file to another directory of the same file system, durably, making that directory first.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(from, to)?;
    sync_parent(to)?;
    sync_parent(from)
}

/// Removes the `.partial` files that killed processes left in a directory. Call it under the lock
/// under which the directory's files are written.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension() == Some("partial".as_ref()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Appends one line and makes it durable; a line that does not fit leaves no part of itself.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        file.set_len(before)?;
    }
    written?;
    sync_parent(path)
}

/// Cuts off a last line that a killed process has torn; whether there was one.
///
/// # Errors
/// Any I/O error, naming the path; a file that is not there has no line.
pub fn cut_torn_line(path: &Path) -> io::Result<bool> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    Ok(whole < bytes.len())
}

/// Makes an empty file, durably, where there is none.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn touch(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).open(path)?.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_no_partial() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.json");
        write(&path, b"a longer first version").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert!(!partial_path(&path).exists());
    }

    #[test]
    fn appended_lines_stay_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append_line(&path, "one").unwrap();
        append_line(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
