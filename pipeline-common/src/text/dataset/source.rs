//! From the name of a dataset to its files, in a fixed order.
//!
//! Offline, a cache may hold the first few shards of a split, as an earlier limit left them: their
//! names tell how many there should be, and running into a missing one is an error.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{
    DatasetSpec,
    format::{Format, Layout},
    split,
};
use crate::text::{
    error::TextError,
    hub::{Hub, Repository, looks_like_path},
};

/// The files of a dataset; those on the hub are downloaded one by one when they are needed.
pub(super) enum Source {
    /// Files, with their names relative to the folder that was given.
    Local(Vec<(PathBuf, PathBuf)>),
    /// Names in a repository, and how many there should be.
    Hub { repository: Box<Repository>, names: Vec<PathBuf>, total: usize },
}

impl Source {
    pub fn resolve(spec: &DatasetSpec, hub: &Hub) -> Result<Self, TextError> {
        let path = Path::new(&spec.source);
        if path.is_file() {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            return Ok(Self::Local(vec![(name, path.to_owned())]));
        }
        if path.is_dir() {
            return folder(path, spec).map(Self::Local);
        }
        if spec.source.contains(['*', '?', '[']) {
            return glob(&spec.source).map(Self::Local);
        }
        if looks_like_path(&spec.source) || Format::of(path).is_some() {
            let source_name = spec.source.clone();
            return Err(TextError::Missing { variable: "HF_DATASET", source_name });
        }
        let repository = hub.dataset(&spec.source, &spec.revision)?;
        let names = published(&repository.names(), spec)?;
        let published = names.first().and_then(|n| split::shard_of(n)).map_or(0, |(_, of)| of);
        let total = if repository.is_cached() { published.max(names.len()) } else { names.len() };
        Ok(Self::Hub { repository: Box::new(repository), names, total })
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Local(files) => files.len(),
            Self::Hub { total, .. } => *total,
        }
    }

    /// The commit of a hub repository.
    pub fn commit(&self) -> Option<&str> {
        match self {
            Self::Local(_) => None,
            Self::Hub { repository, .. } => Some(repository.commit()),
        }
    }

    /// Name and path of a file, downloading it where needed.
    pub fn file(&self, i: usize) -> Result<(PathBuf, PathBuf), TextError> {
        match self {
            Self::Local(files) => Ok(files[i].clone()),
            Self::Hub { repository, names, total } => {
                let name = names.get(i).cloned().unwrap_or_else(|| format!("shard {i}").into());
                let is_next = split::shard_of(&name).is_none_or(|(shard, _)| shard == i);
                if i >= names.len() || (*total > names.len() && !is_next) {
                    let missing = format!("shard {i} of {total}");
                    return Err(repository.not_there(Path::new(&missing)));
                }
                let path = repository.fetch(&name)?;
                Ok((name, path))
            }
        }
    }
}

fn folder(root: &Path, spec: &DatasetSpec) -> Result<Vec<(PathBuf, PathBuf)>, TextError> {
    let mut names = Vec::new();
    walk(root, Path::new(""), &mut names)?;
    names.retain(|name| Format::of(name).is_some());
    names.sort();
    if names.is_empty() {
        return Err(TextError::NoFiles { source_name: spec.source.clone() });
    }
    let chosen = split::choose(&names, &spec.split).map_err(|found| no_split(spec, found))?;
    Ok(chosen.into_iter().map(|name| (name.clone(), root.join(name))).collect())
}

fn walk(root: &Path, below: &Path, names: &mut Vec<PathBuf>) -> Result<(), TextError> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Follows links: the files of a hub snapshot are links to blobs.
        if entry.path().is_dir() {
            walk(root, &name, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

fn glob(pattern: &str) -> Result<Vec<(PathBuf, PathBuf)>, TextError> {
    let named = |why: String| TextError::Pattern { pattern: pattern.to_owned(), why };
    let matches = glob::glob(pattern).map_err(|e| named(format!("which is not one: {e}")))?;
    let mut files = Vec::new();
    for found in matches {
        let file = found.map_err(|e| named(format!("which cannot be followed: {e}")))?;
        if file.is_file() {
            files.push((file.clone(), file));
        }
    }
    if files.is_empty() {
        return Err(named("which matches no file".into()));
    }
    files.sort();
    Ok(files)
}

/// The files of a split in a repository, which often holds the same text in several formats.
fn published(names: &[PathBuf], spec: &DatasetSpec) -> Result<Vec<PathBuf>, TextError> {
    let mut found = Vec::new();
    for layout in [Layout::Parquet, Layout::Jsonl, Layout::Plain] {
        let is_layout = |n: &&PathBuf| Format::of(n).is_some_and(|f| f.layout == layout);
        let mut of_layout: Vec<PathBuf> = names.iter().filter(is_layout).cloned().collect();
        of_layout.sort();
        match split::choose(&of_layout, &spec.split) {
            Ok(chosen) => return one_configuration(chosen, spec),
            Err(others) => found.extend(others),
        }
    }
    if found.is_empty() {
        return Err(TextError::NoFiles { source_name: spec.source.clone() });
    }
    found.sort();
    found.dedup();
    Err(no_split(spec, found))
}

fn one_configuration(names: Vec<PathBuf>, spec: &DatasetSpec) -> Result<Vec<PathBuf>, TextError> {
    let mut found: Vec<String> = names.iter().map(|n| split::configuration(n)).collect();
    found.sort();
    found.dedup();
    if found.len() == 1 {
        return Ok(names);
    }
    // The folder `data`, the root and `default` are what a repository means without a name.
    for usual in ["data", "", "default"] {
        if found.iter().any(|f| f == usual) {
            return Ok(names.into_iter().filter(|n| split::configuration(n) == usual).collect());
        }
    }
    let (source_name, split) = (spec.source.clone(), spec.split.clone());
    Err(TextError::Configurations { source_name, split, found })
}

fn no_split(spec: &DatasetSpec, found: Vec<String>) -> TextError {
    TextError::Split { source_name: spec.source.clone(), split: spec.split.clone(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(split: &str) -> DatasetSpec {
        DatasetSpec {
            source: "a/b".into(),
            revision: "main".into(),
            split: split.to_owned(),
            text_field: "text".into(),
            messages: false,
            limit: None,
        }
    }

    fn choose(names: &[&str], split: &str) -> Result<Vec<String>, TextError> {
        let names: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let chosen = published(&names, &spec(split))?;
        Ok(chosen.iter().map(|p| p.display().to_string()).collect())
    }

    #[test]
    fn parquet_is_preferred_and_data_before_other_folders() {
        let names = [
            "train.jsonl",
            "data/train-1.parquet",
            "data/train-0.parquet",
            "x/train-0.parquet",
            "README.md",
        ];
        assert_eq!(
            choose(&names, "train").unwrap(),
            ["data/train-0.parquet", "data/train-1.parquet"]
        );
    }

    #[test]
    fn several_configurations_are_named() {
        let e = choose(&["a/train.parquet", "b/train.parquet"], "train").unwrap_err();
        assert!(e.to_string().ends_with("configurations: a, b"), "{e}");
        assert_eq!(
            choose(&["a/train.parquet", "b/train.parquet"], "b/train").unwrap(),
            ["b/train.parquet"]
        );
        assert!(matches!(choose(&["README.md"], "train"), Err(TextError::NoFiles { .. })));
        assert!(matches!(choose(&["test.jsonl"], "train"), Err(TextError::Split { .. })));
    }
}
