//! `names/names.jsonl` of a training: what stage 04 calls its latents.

use std::{collections::HashMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stage::{Failure, Result};

/// The file, relative to the training's directory.
pub(super) const FILE: &str = "names/names.jsonl";

/// A latent's name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Name {
    pub latent: u32,
    pub label: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub certainty: Value,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub scores: Value,
}

impl Name {
    /// Balanced accuracy of detection, if it was scored.
    pub fn score(&self) -> Option<f64> {
        self.scores["detection"]["value"].as_f64()
    }
}

/// The names of an SAE's latents.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<u32, Name>);

impl Names {
    /// Reads the file; there are no names where there is none. Of two lines of a latent the later
    /// counts; latents from `d_sae` on are passed over.
    pub fn read(run_dir: &Path, d_sae: usize) -> Result<Self> {
        let path = run_dir.join(FILE);
        let text = match fs_err::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let mut names = HashMap::new();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let name: Name = serde_json::from_str(line).map_err(|e| {
                Failure::input(format!("`{}` line {}: {e}", path.display(), n + 1))
                    .hint("04_name_latents writes the file anew")
            })?;
            if (name.latent as usize) < d_sae {
                names.insert(name.latent, name);
            }
        }
        Ok(Self(names))
    }

    pub fn get(&self, latent: usize) -> Option<&Name> {
        self.0.get(&u32::try_from(latent).ok()?)
    }

    pub fn label(&self, latent: usize) -> Option<&str> {
        self.get(latent).map(|name| name.label.as_str())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Names that hold `wanted`, lower case, in label or description; by latent.
    pub fn holding(&self, wanted: &str) -> Vec<&Name> {
        let holds = |text: &str| text.to_lowercase().contains(wanted);
        let mut found: Vec<&Name> = self
            .0
            .values()
            .filter(|n| holds(&n.label) || n.description.as_deref().is_some_and(holds))
            .collect();
        found.sort_unstable_by_key(|name| name.latent);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_whatever_else_a_line_says() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Names::read(dir.path(), 4).unwrap().len(), 0);
        fs_err::create_dir(dir.path().join("names")).unwrap();
        let lines = concat!(
            r#"{"latent":3,"label":"old"}"#,
            "\n\n",
            r#"{"latent":3,"label":"Dogs","description":"pets","scores":{"detection":{"value":0.75}},"x":1}"#,
            "\n",
            r#"{"latent":4,"label":"cats of another SAE"}"#,
            "\n",
            r#"{"latent":1,"label":"cats","scores":{"detection":{"value":0.5}}}"#,
        );
        fs_err::write(dir.path().join(FILE), lines).unwrap();
        let names = Names::read(dir.path(), 4).unwrap();
        assert_eq!(names.label(3), Some("Dogs"));
        assert_eq!([1, 3].map(|l| names.get(l).unwrap().score()), [Some(0.5), Some(0.75)]);
        assert_eq!(names.holding("pet")[0].latent, 3);
        assert_eq!(names.holding("s").len(), 2);
        fs_err::write(dir.path().join(FILE), "{\"latent\":1}").unwrap();
        let words = Names::read(dir.path(), 4).unwrap_err().source.to_string();
        assert!(words.contains("line 1") && words.contains("label"), "{words}");
    }
}
