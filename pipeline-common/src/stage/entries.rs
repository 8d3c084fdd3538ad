//! A file that lists variants of a stage's settings.
//!
//! ```yaml
//! - name: wide
//!   d_sae: 8192
//! - top_k: 16
//! ```
//!
//! Each entry is a layer above the configuration file and below nothing: what an entry sets must not
//! be set by a flag or a variable too, which would make all entries equal there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_yaml::Value;

use super::{
    Failure, ResolvedConfig, Result, Stage,
    config::{self, ConfigError, OPERATIONAL},
    layers::Values,
};

/// The key that is no setting.
const NAME: &str = "name";

/// One variant of the settings.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the file, else its number from 0.
    pub name: String,
    /// What names it in messages and as an origin: `sweep.yaml#wide`.
    label: PathBuf,
    values: Values,
}

/// Reads a file of entries for the stage `S`.
///
/// # Errors
/// A usage failure for a file that is no list of maps, for unknown keys, for settings that do not
/// decide the result, and for names that occur twice.
pub fn read<S: Stage>(path: &Path) -> Result<Vec<Entry>> {
    let bad = |what: String| Failure::usage(format!("`{}`: {what}", path.display()));
    let text = fs_err::read_to_string(path).map_err(|e| Failure::usage(e.to_string()))?;
    let maps: Vec<BTreeMap<String, Value>> = serde_yaml::from_str(&text).map_err(|e| {
        bad(e.to_string()).hint("expected a list of maps of settings, as in `- top_k: 16`")
    })?;
    let command = S::command();
    let known: Vec<&str> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
    let entry = |(number, map)| entry(path, number, map, &known).map_err(bad);
    let entries = maps.into_iter().enumerate().map(entry).collect::<Result<Vec<Entry>>>()?;
    for (i, entry) in entries.iter().enumerate() {
        if entries[..i].iter().any(|earlier| earlier.name == entry.name) {
            return Err(bad(format!("two entries are called `{}`", entry.name)));
        }
    }
    if entries.is_empty() { Err(bad("the list is empty".to_owned())) } else { Ok(entries) }
}

fn entry(
    path: &Path,
    number: usize,
    mut map: BTreeMap<String, Value>,
    known: &[&str],
) -> std::result::Result<Entry, String> {
    let given = map.remove(NAME).as_ref().and_then(config::yaml_values).unwrap_or_default();
    let name = if given.is_empty() { number.to_string() } else { given.join(" ") };
    let label = PathBuf::from(format!("{}#{name}", path.display()));
    let mut values = vec![];
    for (key, value) in map {
        if !known.contains(&key.as_str()) {
            return Err(format!("unknown key `{key}`{}", config::suggest(&key, known)));
        }
        if OPERATIONAL.contains(&key.as_str()) {
            return Err(format!("`{key}` is of all entries; set it elsewhere"));
        }
        match config::yaml_values(&value) {
            Some(list) if list.is_empty() => {}
            Some(list) => values.push((key, list)),
            None => return Err(format!("`{key}` must be a scalar or a list of scalars")),
        }
    }
    Ok(Entry { name, label, values })
}

impl Entry {
    /// The YAML keys of its settings.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(key, _)| key.as_str())
    }

    /// The stage's settings with those of the entry.
    ///
    /// # Errors
    /// A usage failure for values that are none, and for settings that are given elsewhere too.
    pub fn resolve<S: Stage>(&self) -> Result<(S, ResolvedConfig)> {
        let argv = std::env::args_os().collect();
        let loaded = config::load_below::<S>(argv, Some((&self.label, &self.values)));
        let (stage, config) = loaded.map_err(|error| match error {
            ConfigError::Failure(failure) => failure,
            ConfigError::Clap(error) => {
                let text = error.to_string();
                Failure::usage(text.trim_start_matches("error: ").trim_end().to_owned())
            }
        })?;
        let label = self.label.display().to_string();
        for key in self.keys() {
            if let Some(setting) = config.0.get(key).filter(|setting| setting.origin != label) {
                let (name, origin) = (key.to_uppercase(), &setting.origin);
                let what = format!("{name} is set by `{label}` and by the {origin}");
                return Err(
                    Failure::usage(what).hint(format!("unset {name}: the entries decide it"))
                );
            }
        }
        Ok((stage, config))
    }
}
