//! Which files belong to a split, from their names.
//!
//! A file is named after a split if its stem is the split (`train.jsonl`,
//! `data/train-00000-of-00004.parquet`), if a folder above it is (`train/0.parquet`), or if its
//! stem has it as a word (`TinyStories-train.txt`): the first of these rules that matches any
//! file decides. Where no file is named after any split, all files are the split.

use std::path::{Component, Path, PathBuf};

/// Names that mean the same split.
const SYNONYMS: [&[&str]; 3] = [
    &["train", "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];

/// The files of `split`, in the order given; otherwise the splits that there are.
///
/// `config/split` takes only files below a folder `config`.
pub(super) fn choose(names: &[PathBuf], split: &str) -> Result<Vec<PathBuf>, Vec<String>> {
    let (config, split) = match split.rsplit_once('/') {
        Some((config, split)) => (Some(config), split),
        None => (None, split),
    };
    let names: Vec<&PathBuf> =
        names.iter().filter(|n| config.is_none_or(|c| is_below(n, c))).collect();
    let wanted = synonyms(split);
    let is_split = |word: &str| wanted.contains(&word);
    let rules: [&dyn Fn(&Path) -> bool; 3] = [
        &|name| is_split(&stem(name)),
        &|name| folders(name).iter().any(|f| is_split(f)),
        &|name| stem(name).split(['-', '_']).any(is_split),
    ];
    for rule in rules {
        let chosen: Vec<PathBuf> = names.iter().filter(|n| rule(n)).map(|n| (*n).clone()).collect();
        if !chosen.is_empty() {
            return Ok(chosen);
        }
    }
    let mut found: Vec<String> = names.iter().filter_map(|n| named_split(n)).collect();
    found.sort();
    found.dedup();
    if found.is_empty() && !names.is_empty() {
        Ok(names.into_iter().cloned().collect())
    } else {
        Err(found)
    }
}

/// The folder that holds the files of one configuration of a dataset, for each file.
pub(super) fn configuration(name: &Path) -> String {
    let known: Vec<&str> = SYNONYMS.concat();
    let mut parents = folders(name);
    if parents.last().is_some_and(|last| known.contains(&last.as_str())) {
        parents.pop();
    }
    parents.join("/")
}

/// Shard and number of shards, from a name like `train-00001-of-00004.parquet`.
pub(super) fn shard_of(name: &Path) -> Option<(usize, usize)> {
    let name = name.file_name()?.to_str()?;
    let (before, after) = name.split_once("-of-")?;
    let shard = before.rsplit('-').next()?.parse().ok()?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    Some((shard, after[..digits].parse().ok()?))
}

fn synonyms(split: &str) -> Vec<&str> {
    let group = SYNONYMS.iter().find(|g| g.contains(&split));
    group.map_or_else(|| vec![split], |g| g.to_vec())
}

/// The file name up to its extension or to a number that counts shards.
fn stem(name: &Path) -> String {
    let name = name.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut end = name.find('.').unwrap_or(name.len());
    let bytes = name.as_bytes();
    for at in 0..end.saturating_sub(1) {
        if matches!(bytes[at], b'-' | b'_') && bytes[at + 1].is_ascii_digit() {
            end = at;
            break;
        }
    }
    name[..end].to_owned()
}

fn folders(name: &Path) -> Vec<String> {
    let parts = name.parent().into_iter().flat_map(Path::components);
    parts
        .filter_map(|c| match c {
            Component::Normal(c) => Some(c.to_string_lossy().to_lowercase()),
            _ => None,
        })
        .collect()
}

fn is_below(name: &Path, config: &str) -> bool {
    let parents = folders(name).join("/");
    format!("/{parents}/").contains(&format!("/{}/", config.trim_matches('/').to_lowercase()))
}

/// The split a file is named after, if it is a common one.
fn named_split(name: &Path) -> Option<String> {
    let known: Vec<&str> = SYNONYMS.concat();
    let stem = stem(name);
    if stem.split(['-', '_']).any(|word| known.contains(&word)) {
        return Some(stem);
    }
    folders(name).into_iter().rev().find(|f| known.contains(&f.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], split: &str) -> Result<Vec<String>, Vec<String>> {
        let names: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        choose(&names, split).map(|v| v.iter().map(|p| p.display().to_string()).collect())
    }

    #[test]
    fn the_strictest_rule_that_matches_decides() {
        let hub = [
            "TinyStories-train.txt",
            "data/train-00000-of-00002-2d5a.parquet",
            "data/validation-00000-of-00001.parquet",
        ];
        assert_eq!(chosen(&hub, "train").unwrap(), [hub[1]]);
        assert_eq!(chosen(&hub, "valid").unwrap(), [hub[2]]);
        assert_eq!(
            chosen(&["a/train/0.parquet", "a/test/0.parquet"], "test").unwrap(),
            ["a/test/0.parquet"]
        );
        assert_eq!(
            chosen(&["stories-train.txt", "stories-valid.txt"], "validation").unwrap(),
            ["stories-valid.txt"]
        );
        assert_eq!(chosen(&["train_0.jsonl.gz", "train_1.jsonl.gz"], "train").unwrap().len(), 2);
    }

    #[test]
    fn names_without_splits_are_all_of_it_and_other_splits_are_listed() {
        assert_eq!(chosen(&["a.txt", "latest.txt"], "train").unwrap(), ["a.txt", "latest.txt"]);
        assert_eq!(
            chosen(&["train_sft-0.parquet", "test_sft-0.parquet"], "dev").unwrap_err(),
            ["test_sft", "train_sft"]
        );
        assert_eq!(chosen(&["test/a.txt", "train.txt"], "dev").unwrap_err(), ["test", "train"]);
    }

    #[test]
    fn a_configuration_is_a_folder() {
        let names = ["wiki-2/train-0.parquet", "wiki-103/train-0.parquet"];
        assert_eq!(chosen(&names, "wiki-103/train").unwrap(), [names[1]]);
        assert_eq!(configuration(Path::new("wiki-103/train/0.parquet")), "wiki-103");
        assert_eq!(configuration(Path::new("train.parquet")), "");
    }
}
