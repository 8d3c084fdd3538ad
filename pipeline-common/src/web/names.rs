//! What stage 04 calls the latents of an SAE.

use std::{collections::BTreeMap, path::Path};

use crate::{
    names::{NameRecord, read_names},
    stage::Result,
};

/// The names of an SAE's latents.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u32, NameRecord>);

impl Names {
    /// Reads the names of a training run; those of latents from `d_sae` on, which another SAE had, are
    /// passed over.
    pub fn read(run_dir: &Path, d_sae: usize) -> Result<Self> {
        let mut names = read_names(run_dir)?;
        names.retain(|latent, _| (*latent as usize) < d_sae);
        Ok(Self(names))
    }

    pub fn get(&self, latent: usize) -> Option<&NameRecord> {
        self.0.get(&u32::try_from(latent).ok()?)
    }

    pub fn label(&self, latent: usize) -> Option<&str> {
        self.get(latent).map(|name| name.label.as_str())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Names that hold `wanted`, lower case, in label or description; by latent.
    pub fn holding(&self, wanted: &str) -> Vec<&NameRecord> {
        let holds = |text: &str| text.to_lowercase().contains(wanted);
        self.0.values().filter(|n| holds(&n.label) || holds(&n.description)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{FILE, Score, Scores};

    #[test]
    fn names_are_those_of_the_sae() {
        let dir = tempfile::tempdir().unwrap();
        let name = |latent, label: &str, description: &str| NameRecord {
            latent,
            label: label.into(),
            description: description.into(),
            scores: Scores {
                detection: Some(Score { value: 0.75, ..Score::default() }),
                ..Scores::default()
            },
            ..NameRecord::default()
        };
        let records =
            [name(3, "old", ""), name(3, "Dogs", "pets"), name(4, "cats", ""), name(1, "cats", "")];
        let lines: Vec<String> =
            records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        fs_err::create_dir(dir.path().join("names")).unwrap();
        fs_err::write(dir.path().join(FILE), lines.join("\n\n")).unwrap();
        let names = Names::read(dir.path(), 4).unwrap();
        assert_eq!((names.len(), names.label(3)), (2, Some("Dogs")), "the later line counts");
        assert_eq!(names.get(1).unwrap().score(), Some(0.75));
        assert_eq!(names.holding("pet")[0].latent, 3);
        assert_eq!(names.holding("s").len(), 2);
    }
}
