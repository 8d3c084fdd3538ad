//! Streams: one contiguous part of the documents per worker, fixed once per run.
//!
//! The first worker of a run writes `streams.json`; every other one checks that it would have
//! written the same, so that no document is read twice or left out when a job array is submitted
//! again with another size.

use std::{io::Write, ops::Range, os::unix::fs::PermissionsExt, path::Path};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::TextError;

/// The file in a run's directory.
pub const FILE: &str = "streams.json";

/// How the documents of a run are shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Number of streams.
    pub count: u64,
    /// Number of documents in all of them.
    pub documents: u64,
    /// Stream `i` is documents `bounds[i]..bounds[i + 1]`.
    pub bounds: Vec<u64>,
}

impl Streams {
    /// Cuts `documents` into `count` streams whose sizes differ by one at most; `count` 0 is taken
    /// as 1.
    pub fn split(documents: u64, count: u64) -> Self {
        let count = count.max(1);
        let bound = |i| (u128::from(documents) * i / u128::from(count)) as u64;
        Self { count, documents, bounds: (0..=u128::from(count)).map(bound).collect() }
    }

    /// Cuts documents of these weights into `count` streams of equal work: each weighs what the
    /// mean does, give or take one document. `count` 0 is taken as 1.
    ///
    /// A bound is the document boundary nearest to where an exact cut would be.
    pub fn balanced(weights: &[u32], count: u64) -> Self {
        let count = count.max(1);
        // A document without weight is not free to read.
        let weight = |w: &u32| u128::from(*w).max(1);
        let total: u128 = weights.iter().map(weight).sum();
        let (mut bounds, mut before) = (vec![0], 0);
        for (i, w) in weights.iter().map(weight).enumerate() {
            // The next cut is at `bounds.len() * total / count`; compare it with this middle.
            while bounds.len() < count as usize
                && (2 * before + w) * u128::from(count) >= 2 * bounds.len() as u128 * total
            {
                bounds.push(i as u64);
            }
            before += w;
        }
        let documents = weights.len() as u64;
        bounds.resize(count as usize + 1, documents);
        Self { count, documents, bounds }
    }

    /// The documents of stream `i`; empty beyond the last.
    pub fn range(&self, i: u64) -> Range<u64> {
        let bound = |i: u64| usize::try_from(i).ok().and_then(|i| self.bounds.get(i).copied());
        match (bound(i), i.checked_add(1).and_then(bound)) {
            (Some(start), Some(end)) => start..end,
            _ => self.documents..self.documents,
        }
    }

    /// Writes the streams into the run's directory, or checks that those there are the same.
    ///
    /// The file appears whole, and the first of several writers wins. A killed writer leaves a
    /// `.partial` file.
    ///
    /// # Errors
    /// [`TextError::Streams`] naming both if the run has others; I/O errors.
    pub fn agree(&self, run: &Path) -> Result<(), TextError> {
        let path = run.join(FILE);
        if !path.exists() {
            fs::create_dir_all(run)?;
            // A temporary file is private; other users read a shared store.
            let mode = std::fs::Permissions::from_mode(0o666);
            let mut file = tempfile::Builder::new()
                .prefix(FILE)
                .suffix(".partial")
                .permissions(mode)
                .tempfile_in(run)?;
            serde_json::to_writer_pretty(&mut file, self).map_err(std::io::Error::from)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            match file.persist_noclobber(&path) {
                Ok(_) => {
                    fs::File::open(run)?.sync_all()?;
                    return Ok(());
                }
                Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e.error.into()),
            }
        }
        let stored = Self::load(run)?;
        if stored == *self {
            return Ok(());
        }
        Err(TextError::Streams { file: path, stored: stored.describe(), mine: self.describe() })
    }

    /// The streams of a run.
    ///
    /// # Errors
    /// [`TextError::StreamsFile`] if the file is not what [`Self::agree`] writes; I/O errors.
    pub fn load(run: &Path) -> Result<Self, TextError> {
        let file = run.join(FILE);
        let bad = |why: String| TextError::StreamsFile { file: file.clone(), why };
        let this: Self =
            serde_json::from_str(&fs::read_to_string(&file)?).map_err(|e| bad(e.to_string()))?;
        let covers = this.bounds.first() == Some(&0)
            && this.bounds.last() == Some(&this.documents)
            && this.bounds.len() as u64 == this.count.saturating_add(1)
            && this.bounds.is_sorted();
        if covers {
            Ok(this)
        } else {
            Err(bad("its bounds do not cover the documents once".into()))
        }
    }

    fn describe(&self) -> String {
        format!("{} documents in {} streams", self.documents, self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stage::{Classify, Kind};

    proptest! {
        #[test]
        fn every_document_is_in_exactly_one_stream(documents in 0_u64..5000, count in 1_u64..70) {
            let streams = Streams::split(documents, count);
            let all: Vec<u64> = (0..count).flat_map(|i| streams.range(i)).collect();
            prop_assert_eq!(all, (0..documents).collect::<Vec<_>>());
            let sizes: Vec<u64> = (0..count).map(|i| streams.range(i).count() as u64).collect();
            let spread = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            prop_assert!(spread <= 1);
        }

        #[test]
        fn balanced_streams_cover_all_and_weigh_the_mean_give_or_take_a_document(
            weights in proptest::collection::vec(0_u32..600, 0..400),
            count in 1_u64..40,
        ) {
            let streams = Streams::balanced(&weights, count);
            let all: Vec<u64> = (0..count).flat_map(|i| streams.range(i)).collect();
            prop_assert_eq!(all, (0..weights.len() as u64).collect::<Vec<_>>());
            let weight = |i: u64| u64::from(weights[i as usize].max(1));
            let mean = (0..weights.len() as u64).map(weight).sum::<u64>() as f64 / count as f64;
            let heaviest = weights.iter().max().map_or(0, |w| (*w).max(1));
            for i in 0..count {
                let found: u64 = streams.range(i).map(weight).sum();
                prop_assert!((found as f64 - mean).abs() <= f64::from(heaviest) + 1e-6, "{i}: {found} of {mean}");
            }
        }
    }

    #[test]
    fn huge_counts_do_not_overflow() {
        let streams = Streams::split(u64::MAX, 3);
        assert_eq!(streams.range(2).end, u64::MAX);
        assert_eq!(streams.range(3), u64::MAX..u64::MAX);
        assert_eq!(streams.range(u64::MAX), u64::MAX..u64::MAX);
    }

    #[test]
    fn the_first_writer_wins_and_another_split_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let streams = Streams::split(10, 3);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| streams.agree(run.path()).unwrap());
            }
        });
        assert_eq!(Streams::load(run.path()).unwrap(), streams);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
        let e = Streams::split(10, 4).agree(run.path()).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        let said = e.to_string();
        assert!(
            said.contains("10 documents in 3 streams") && said.contains("in 4 streams"),
            "{said}"
        );
    }

    #[test]
    fn a_broken_file_is_invalid_input() {
        let run = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            r#"{"count":2,"documents":4,"bounds":[0,3,2]}"#,
            r#"{"count":1,"documents":4,"bounds":[0,3]}"#,
        ] {
            fs::write(run.path().join(FILE), text).unwrap();
            assert_eq!(Streams::load(run.path()).unwrap_err().kind(), Kind::Input, "{text}");
        }
    }
}
