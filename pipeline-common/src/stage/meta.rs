//! `meta.json`: what a run says about itself.
//!
//! Each kind of run has its own fields; all have a `schema`, so that an older program refuses what
//! it does not understand.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Failure, Result};

/// The file's name in a run's directory.
pub const META: &str = "meta.json";

/// Reads a run's file; `None` where there is none. `newest` is the schema this program knows,
/// `what` is the kind of run, for instance `a capture run`.
///
/// # Errors
/// As [`read_file`].
pub fn read<T: DeserializeOwned>(run_dir: &Path, newest: u32, what: &str) -> Result<Option<T>> {
    read_file(&run_dir.join(META), newest, what)
}

/// Reads a file with a schema; `None` where there is none.
///
/// # Errors
/// An input failure for a file that is not one, is of another kind of run or of a newer schema;
/// I/O errors.
pub fn read_file<T: DeserializeOwned>(path: &Path, newest: u32, what: &str) -> Result<Option<T>> {
    let bytes = match fs_err::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    parse(&bytes, &path.display().to_string(), newest, what).map(Some)
}

/// As [`read`], from the file's contents; `place` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse<T: DeserializeOwned>(bytes: &[u8], place: &str, newest: u32, what: &str) -> Result<T> {
    let bad = |what: String| Failure::input(format!("`{place}`: {what}"));
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    match value["schema"].as_u64() {
        Some(n) if n <= u64::from(newest) => {}
        found => {
            let found = found.map_or_else(|| "missing".to_owned(), |n| n.to_string());
            return Err(bad(format!("schema is {found}, this program knows up to {newest}"))
                .hint("use the version of the pipeline that wrote the run, or a later one"));
        }
    }
    let other = |e: serde_json::Error| {
        bad(format!("not the file of {what}: {e}"))
            .hint("RUN_ID names a capture run, SAE_RUN_ID a training run")
    };
    serde_json::from_value(value).map_err(other)
}
