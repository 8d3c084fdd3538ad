//! Names of latents on the page: stage 04's, which may come before the page or after it.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;

use super::data::REPORT;
use crate::{
    names::{NameRecord, read_names},
    stage::{Failure, Result, atomic},
};

/// What stands before the names on the page.
const BEGIN: &str = "<script id=\"names\" type=\"application/json\">";
/// What stands after them.
const END: &str = "</script>";

/// The names of a training run as the page's script reads them, from latent to label, description and
/// detection score; none before there are any.
///
/// # Errors
/// A damaged line.
pub(super) fn names(run: &Path) -> Result<String> {
    let shown = |n: &NameRecord| json!([n.label, n.description, n.score()]);
    let names: BTreeMap<u32, _> =
        read_names(run)?.into_iter().map(|(latent, name)| (latent, shown(&name))).collect();
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
