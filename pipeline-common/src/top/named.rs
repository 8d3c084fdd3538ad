//! Names of latents on the page: stage 04's, which may come before the page or after it.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};

use super::data::REPORT;
use crate::stage::{Failure, Result, atomic};

/// Where the names are in a training run: a JSON object a line.
const NAMES: &str = "names/names.jsonl";
/// What stands before the names on the page.
const BEGIN: &str = "<script id=\"names\" type=\"application/json\">";
/// What stands after them.
const END: &str = "</script>";

/// What the page shows of a name.
#[derive(Deserialize)]
struct Name {
    latent: u32,
    label: String,
    description: String,
    #[serde(default)]
    scores: Value,
}

/// The names of a training run as the page's script reads them, from latent to label, description and
/// detection score; none before there are any.
///
/// # Errors
/// A damaged line.
pub(super) fn names(run: &Path) -> Result<String> {
    let path = run.join(NAMES);
    let text = match fs_err::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let mut names = BTreeMap::new();
    for (n, line) in text.lines().enumerate() {
        let name: Name = serde_json::from_str(line).map_err(|e| {
            Failure::input(format!("`{}` line {}: {e}", path.display(), n + 1))
                .hint("`04_name_latents parse` writes it anew")
        })?;
        let detection = name.scores.pointer("/detection/value").cloned();
        names.insert(name.latent, json!([name.label, name.description, detection]));
    }
    // As with all data of the page, no `<` survives.
    Ok(serde_json::to_string(&names).map_err(std::io::Error::from)?.replace('<', "\\u003c"))
}

/// Puts the names that a training run has now on its page, if it has one.
///
/// # Errors
/// A page that is none of ours, damaged names.
pub fn refresh(run: &Path) -> Result<()> {
    let path = run.join("top_sentences").join(REPORT);
    let page = match fs_err::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| {
        Failure::input(format!("`{}` has no place for names", path.display()))
            .hint("03_top_sentences writes it anew")
    })?;
    let page = format!("{before}{BEGIN}{}{END}{after}", names(run)?);
    Ok(atomic::write(&path, page.as_bytes())?)
}
