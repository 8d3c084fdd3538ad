//! What `names/` of a training run holds beside the ledgers.
//!
//! `names.jsonl` has a [`NameRecord`] a line, ascending by latent; `names.yaml` has the same for people;
//! `unnamed.jsonl` says of which latents no name could be had, and why.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    names::{NameRecord, read_lines, read_names},
    stage::{Result, atomic},
};

/// The directory of a training run that holds all this.
pub(super) const DIRECTORY: &str = "names";
/// A name a line.
pub(super) const NAMES: &str = "names.jsonl";
/// Names by latent.
const NAMES_YAML: &str = "names.yaml";
/// Latents that were asked about in vain.
pub(super) const UNNAMED: &str = "unnamed.jsonl";

/// A latent without a name: a line of `unnamed.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedRecord {
    /// Number of the latent, from 0.
    pub latent: u32,
    /// `refused`, `malformed`, `failed` or `no_sentences`.
    pub reason: String,
    /// What the model or the server said.
    pub said: String,
}

/// The names in `names/`, by latent.
pub(super) fn read(dir: &Path) -> Result<BTreeMap<u32, NameRecord>> {
    read_names(dir.parent().unwrap_or(dir))
}

/// The latents of `names/` that have no name.
pub(super) fn read_unnamed(dir: &Path) -> Result<BTreeMap<u32, UnnamedRecord>> {
    let records: Vec<UnnamedRecord> = read_lines(&dir.join(UNNAMED))?;
    Ok(records.into_iter().map(|record| (record.latent, record)).collect())
}

/// Writes the names in both forms, and the latents that have none, into `names/`.
pub(super) fn write_names(
    dir: &Path,
    names: &BTreeMap<u32, NameRecord>,
    unnamed: &BTreeMap<u32, UnnamedRecord>,
) -> Result<()> {
    atomic::write(&dir.join(NAMES), lines(names.values())?.as_bytes())?;
    atomic::write(&dir.join(UNNAMED), lines(unnamed.values())?.as_bytes())?;
    let yaml = serde_yaml::to_string(names).map_err(std::io::Error::other)?;
    Ok(atomic::write(&dir.join(NAMES_YAML), yaml.as_bytes())?)
}

/// Records as JSON lines.
pub(super) fn lines<'a, T: Serialize + 'a>(
    records: impl IntoIterator<Item = &'a T>,
) -> Result<String> {
    let mut text = String::new();
    for record in records {
        text += &serde_json::to_string(record).map_err(std::io::Error::from)?;
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{FILE, Score, Scores};

    #[test]
    fn names_are_read_as_they_were_written() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(run.path().join(FILE), run.path().join(DIRECTORY).join(NAMES));
        let score =
            Score { value: 0.9, interval: Some([0.8, 1.0]), judgements: 20, model: "j".into() };
        let record = NameRecord {
            latent: 7,
            label: "\"ż\": \n#".into(),
            description: "d".into(),
            certainty: 0.25,
            model: "m".into(),
            scores: Scores { detection: Some(score), ..Scores::default() },
        };
        let names =
            BTreeMap::from([(7, record), (3, NameRecord { latent: 3, ..Default::default() })]);
        write_names(&run.path().join(DIRECTORY), &names, &BTreeMap::new()).unwrap();
        assert_eq!(read_names(run.path()).unwrap(), names);
        let yaml = fs_err::read_to_string(run.path().join("names/names.yaml")).unwrap();
        let again: BTreeMap<u32, NameRecord> = serde_yaml::from_str(&yaml).unwrap();
        assert_eq!(again, names);
    }
}
