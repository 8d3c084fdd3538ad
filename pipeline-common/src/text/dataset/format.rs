//! How a data file is read, from its name alone.

use std::path::Path;

/// Extensions that are read, for messages.
pub const EXTENSIONS: &[&str] = &[
    ".parquet",
    ".jsonl",
    ".json",
    ".ndjson",
    ".txt",
    "and all but .parquet also with .gz or .zst",
];

/// JSON files that describe a dataset and hold no documents.
const METADATA: &[&str] =
    &["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// What a file's records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A JSON object per line.
    Jsonl,
    /// A column of strings.
    Parquet,
    /// Lines or paragraphs.
    Plain,
}

/// How the bytes of a file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    None,
    /// One or several gzip members.
    Gzip,
    /// One or several zstd frames.
    Zstd,
}

/// Layout and packing of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub layout: Layout,
    pub packing: Packing,
}

impl Format {
    /// The format that the name promises; `None` for names that are not data.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_lowercase();
        if name.starts_with('.') || METADATA.contains(&name.as_str()) {
            return None;
        }
        let (stem, packing) = match name.rsplit_once('.') {
            Some((stem, "gz")) => (stem, Packing::Gzip),
            Some((stem, "zst" | "zstd")) => (stem, Packing::Zstd),
            _ => (name.as_str(), Packing::None),
        };
        let layout = match stem.rsplit_once('.')?.1 {
            "jsonl" | "json" | "ndjson" => Layout::Jsonl,
            "txt" => Layout::Plain,
            "parquet" if packing == Packing::None => Layout::Parquet,
            _ => return None,
        };
        Some(Self { layout, packing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_layout_and_packing() {
        let of = |name: &str| Format::of(Path::new(name)).map(|f| (f.layout, f.packing));
        assert_eq!(of("a/b.jsonl"), Some((Layout::Jsonl, Packing::None)));
        assert_eq!(of("B.JSONL.GZ"), Some((Layout::Jsonl, Packing::Gzip)));
        assert_eq!(of("b.ndjson.zst"), Some((Layout::Jsonl, Packing::Zstd)));
        assert_eq!(of("b.txt"), Some((Layout::Plain, Packing::None)));
        assert_eq!(of("b.v2.parquet"), Some((Layout::Parquet, Packing::None)));
        for no in ["b.parquet.gz", "README.md", "dataset_infos.json", ".x.txt", "txt", "b.gz"] {
            assert_eq!(of(no), None, "{no}");
        }
    }
}
