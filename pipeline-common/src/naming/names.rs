//! Names of latents as `names/` of a training run holds them, for whoever shows a latent.
//!
//! `names.jsonl` has a [`NameRecord`] a line, ascending by latent; `names.yaml` has the same for people;
//! `unnamed.jsonl` says of which latents no name could be had, and why.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::stage::{Failure, Result, atomic};

/// The directory of a training run that holds all this.
pub const DIRECTORY: &str = "names";
/// A name a line.
pub const NAMES: &str = "names.jsonl";
/// Names by latent.
pub const NAMES_YAML: &str = "names.yaml";
/// Latents that were asked about in vain.
pub const UNNAMED: &str = "unnamed.jsonl";

/// A latent's name: a line of `names.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NameRecord {
    /// Number of the latent, from 0.
    pub latent: u32,
    /// A few words.
    pub label: String,
    /// A sentence or two.
    pub description: String,
    /// How sure the model says it is, from 0 to 1.
    pub certainty: f64,
    /// The model that gave the name.
    pub model: String,
    /// How well the name tells sentences apart; absent ones have not been asked for.
    #[serde(default)]
    pub scores: Scores,
}

impl NameRecord {
    /// Whether it says the same of its latent; scores apart.
    pub(super) fn is_same_name(&self, other: &Self) -> bool {
        (&self.label, &self.description) == (&other.label, &other.description)
    }
}

/// What was measured of a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Balanced accuracy of telling, by the description, sentences in which the latent is active from
    /// others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<Score>,
    /// Balanced accuracy of telling, by the description, rightly marked tokens from wrongly marked
    /// ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuzzing: Option<Score>,
    /// Share of groups in which the sentence that does not belong was found, without a description;
    /// chance finds one in five.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intruder: Option<Score>,
}

impl Scores {
    /// Takes over the scores that another one has.
    pub(super) fn take_over(&mut self, newer: Self) {
        self.detection = newer.detection.or(self.detection.take());
        self.fuzzing = newer.fuzzing.or(self.fuzzing.take());
        self.intruder = newer.intruder.or(self.intruder.take());
    }
}

/// A figure with its uncertainty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// From 0 to 1.
    pub value: f64,
    /// Between what 95 % of a bootstrap over documents lie; absent where there is one document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Judgements it is made of.
    pub judgements: u64,
}

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

/// The names of a training run, by latent; none before there are any.
///
/// # Errors
/// A line of `names/names.jsonl` that is damaged, I/O errors.
pub fn read_names(training_run: &Path) -> Result<BTreeMap<u32, NameRecord>> {
    read(&training_run.join(DIRECTORY))
}

/// As [`read_names`], from `names/` itself.
pub(super) fn read(dir: &Path) -> Result<BTreeMap<u32, NameRecord>> {
    let records: Vec<NameRecord> = read_lines(&dir.join(NAMES))?;
    Ok(records.into_iter().map(|record| (record.latent, record)).collect())
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

/// The records of a JSON lines file; none where there is no file.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = match fs_err::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let record = |(n, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            Failure::input(format!("`{}` line {}: {e}", path.display(), n + 1))
                .hint("`04_name_latents parse` writes it anew")
        })
    };
    text.lines().enumerate().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read_names(run.path()).unwrap(), BTreeMap::new());
        let score = Score { value: 0.9, interval: Some([0.8, 1.0]), judgements: 20 };
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

    #[test]
    fn a_damaged_line_is_named() {
        let run = tempfile::tempdir().unwrap();
        fs_err::create_dir(run.path().join(DIRECTORY)).unwrap();
        fs_err::write(run.path().join("names/names.jsonl"), "{}\n").unwrap();
        let failure = read_names(run.path()).unwrap_err();
        assert!(failure.source.to_string().contains("names.jsonl` line 1"), "{failure:?}");
    }
}
