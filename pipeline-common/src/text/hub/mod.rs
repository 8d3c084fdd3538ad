//! Models and datasets of the hub, in the local cache.
//!
//! The cache is the one of `huggingface_hub`, so files that Python fetched are found. A model or
//! dataset that is a local path never comes here.

mod repository;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use fs_err as fs;

pub(super) use self::repository::Repository;
use self::repository::RepositoryKind;
use super::{HubArgs, TextError};

const ENDPOINT: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
/// Lists of the files that hold weights, and files that hold all of them, first choice first.
const INDICES: [&str; 2] = ["model.safetensors.index.json", "pytorch_model.bin.index.json"];
const SINGLES: [&str; 2] = [SINGLE, "pytorch_model.bin"];

/// Fetched where they exist.
const SMALL: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDICES[0],
    INDICES[1],
];

/// Where models and datasets come from.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    offline: bool,
}

/// A model on the local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with `config.json`.
    pub dir: PathBuf,
    /// The commit on the hub that `dir` is a copy of; a local folder has none.
    pub commit: Option<String>,
}

impl Hub {
    /// The hub that the options describe; nothing is contacted yet.
    pub fn new(args: &HubArgs) -> Self {
        let home = args.hf_home.clone().unwrap_or_else(default_home);
        let stored = || {
            let token = fs::read_to_string(home.join("token")).ok()?;
            Some(token.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let cache = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(directory);
        Self {
            endpoint: args.hf_endpoint.clone().unwrap_or_else(|| ENDPOINT.into()),
            token: args.hf_token.clone().or_else(stored),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: args.hf_hub_offline,
        }
    }

    /// The folder of a model: `id` itself if that is a local folder, else a snapshot in the cache.
    ///
    /// Fetches configuration and tokenizer, and with `weights` every file of weights in one format.
    ///
    /// # Errors
    /// A path that does not exist, a repository the hub does not have or refuses, an unreachable
    /// hub, a file that is not cached while offline, a repository that is not a model.
    pub fn model_dir(
        &self,
        id: &str,
        revision: &str,
        weights: bool,
    ) -> Result<Snapshot, TextError> {
        if Path::new(id).is_dir() {
            return Ok(Snapshot { dir: id.into(), commit: None });
        }
        if looks_like_path(id) {
            return Err(TextError::Missing { variable: "MODEL_ID", source_name: id.to_owned() });
        }
        let repository = Repository::open(self, RepositoryKind::Model, id, revision)?;
        let config = repository.need(CONFIG)?;
        for name in SMALL {
            if repository.has(name) {
                repository.fetch(Path::new(name))?;
            }
        }
        if weights {
            for name in weight_files(&repository)? {
                repository.need(&name)?;
            }
        }
        let dir = config.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Snapshot { dir, commit: Some(repository.commit().to_owned()) })
    }

    /// The repository of a dataset.
    ///
    /// # Errors
    /// As [`Self::model_dir`].
    pub(super) fn dataset(&self, id: &str, revision: &str) -> Result<Repository, TextError> {
        Repository::open(self, RepositoryKind::Dataset, id, revision)
    }
}

/// Whether a name cannot be `owner/name` on the hub.
pub(super) fn looks_like_path(id: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    !id.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

fn weight_files(repository: &Repository) -> Result<BTreeSet<String>, TextError> {
    for (single, index) in SINGLES.into_iter().zip(INDICES) {
        if repository.has(index) {
            return sharded(repository, index);
        }
        if repository.has(single) {
            return Ok(BTreeSet::from([single.to_owned()]));
        }
    }
    Ok(BTreeSet::from([SINGLE.to_owned()]))
}

/// The files that an index names.
fn sharded(repository: &Repository, index: &str) -> Result<BTreeSet<String>, TextError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let file = repository.need(index)?;
    let index: Index = serde_json::from_str(&fs::read_to_string(&file)?)
        .map_err(|e| TextError::Index { file, why: e.to_string() })?;
    Ok(index.weight_map.into_values().collect())
}

fn default_home() -> PathBuf {
    let home = || directory("HOME").unwrap_or_default().join(".cache");
    directory("HF_HOME")
        .unwrap_or_else(|| directory("XDG_CACHE_HOME").unwrap_or_else(home).join("huggingface"))
}

fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_id_has_exactly_one_slash() {
        for id in ["owner/name", "a-b/c_d.e", "speakleash/Bielik-1.5B-v3.0-Instruct"] {
            assert!(!looks_like_path(id), "{id}");
        }
        for path in ["gpt2", "./a", "../a", "/a/b", "a/b/c", "a/", "/a", "~/a", "", "a b/c"] {
            assert!(looks_like_path(path), "{path}");
        }
    }

    #[test]
    fn a_local_folder_wins_and_a_missing_one_is_a_usage_error() {
        let hub = Hub::new(&HubArgs { hf_hub_offline: true, ..HubArgs::default() });
        let dir = tempfile::tempdir().unwrap();
        let id = dir.path().to_str().unwrap();
        let found = hub.model_dir(id, "main", true).unwrap();
        assert_eq!(found, Snapshot { dir: id.into(), commit: None });
        let gone = hub.model_dir(&format!("{id}/gone"), "main", true).unwrap_err();
        assert!(matches!(gone, TextError::Missing { variable: "MODEL_ID", .. }), "{gone}");
    }
}
