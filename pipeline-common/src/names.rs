//! Names of latents, as stage 04 leaves them in a training run for whoever shows a latent.
//!
//! `names/names.jsonl` has a [`NameRecord`] a line, ascending by latent.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::stage::{Failure, Result};

/// The names, relative to the training run's directory.
pub const FILE: &str = "names/names.jsonl";

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
    /// Balanced accuracy of detection, if it was scored.
    #[must_use]
    pub fn score(&self) -> Option<f64> {
        self.scores.detection.as_ref().map(|score| score.value)
    }

    /// Whether it says the same of its latent; scores apart.
    pub(crate) fn is_same_name(&self, other: &Self) -> bool {
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
    pub(crate) fn take_over(&mut self, newer: Self) {
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
    /// The model that judged.
    #[serde(default)]
    pub model: String,
}

/// The names of a training run, by latent; none before there are any.
///
/// # Errors
/// A damaged line, I/O errors.
pub fn read_names(training_run: &Path) -> Result<BTreeMap<u32, NameRecord>> {
    let records: Vec<NameRecord> = read_lines(&training_run.join(FILE))?;
    Ok(records.into_iter().map(|record| (record.latent, record)).collect())
}

/// The records of a JSON lines file of stage 04; none where there is no file.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
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
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_is_named() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read_names(run.path()).unwrap(), BTreeMap::new());
        fs_err::create_dir(run.path().join("names")).unwrap();
        fs_err::write(run.path().join(FILE), "\n{}\n").unwrap();
        let failure = read_names(run.path()).unwrap_err();
        assert!(failure.source.to_string().contains("names.jsonl` line 2"), "{failure:?}");
    }
}
