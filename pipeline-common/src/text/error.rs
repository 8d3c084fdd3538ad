//! What can be wrong with text: datasets, the hub, streams.

use std::{io, path::PathBuf};

use crate::stage::{
    Classify, Kind,
    error::{io_hint, io_kind},
};

/// Any error of module [`crate::text`].
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A path that the user named is not there.
    #[error("{variable} names `{source_name}`, which does not exist")]
    Missing {
        /// The variable that holds the name.
        variable: &'static str,
        /// The name as given.
        source_name: String,
    },
    /// A glob pattern that cannot be parsed or matches nothing.
    #[error("HF_DATASET names the pattern `{pattern}`, {why}")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// `which matches no file`, or what is wrong with it.
        why: String,
    },
    /// A file whose name does not say how to read it.
    #[error("`{file}` has no known extension")]
    Extension {
        /// The file.
        file: PathBuf,
    },
    /// A folder or hub repository without one readable file.
    #[error("`{source_name}` holds no data files")]
    NoFiles {
        /// The folder or hub id.
        source_name: String,
    },
    /// Files are named after splits, none after this one.
    #[error("`{source_name}` has no split `{split}`")]
    Split {
        /// The folder or hub id.
        source_name: String,
        /// DATA_SPLIT as given.
        split: String,
        /// Splits that there are.
        found: Vec<String>,
    },
    /// Several folders of a hub dataset hold the split.
    #[error("`{source_name}` has split `{split}` in several configurations: {}", found.join(", "))]
    Configurations {
        /// The hub id.
        source_name: String,
        /// DATA_SPLIT as given.
        split: String,
        /// The folders that hold it.
        found: Vec<String>,
    },
    /// No document at all.
    #[error("dataset `{source_name}` is empty: no document in {files} file(s)")]
    Empty {
        /// The source as given.
        source_name: String,
        /// Files that were looked at.
        files: usize,
    },
    /// The text field is not in a record.
    #[error("{at} has no field `{field}`; it has {}", list(found))]
    NoField {
        /// File, and line or record where known.
        at: Place,
        /// TEXT_FIELD as given.
        field: String,
        /// Fields that exist.
        found: Vec<String>,
    },
    /// The text field holds something else.
    #[error("{at}: field `{field}` is {found}, expected a string")]
    NotText {
        /// File, and line or record where known.
        at: Place,
        /// TEXT_FIELD as given.
        field: String,
        /// What it holds.
        found: String,
    },
    /// Bytes that are not UTF-8.
    #[error("{at} is not UTF-8: byte 0x{byte:02x} at byte offset {offset} of the {of}")]
    NotUtf8 {
        /// File, and line or record.
        at: Place,
        /// The first byte that is wrong.
        byte: u8,
        /// Where it is, from 0.
        offset: u64,
        /// What the offset counts in: `decoded file` or `record`.
        of: &'static str,
    },
    /// A line that is not one JSON object.
    #[error("{at} is not a JSON object: {why}")]
    Json {
        /// File and line.
        at: Place,
        /// The parser's message.
        why: String,
    },
    /// One line or paragraph that would not fit into memory.
    #[error("{at} is longer than {limit} bytes")]
    TooLong {
        /// File and line.
        at: Place,
        /// The limit.
        limit: usize,
    },
    /// A compressed or columnar file that cannot be decoded.
    #[error("`{file}` is truncated or corrupt: {why}")]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// The decoder's message.
        why: String,
    },
    /// A file that has fewer documents than when the dataset was opened.
    #[error("`{file}` changed while it was read: expected {expected} documents, found {found}")]
    Changed {
        /// The file.
        file: PathBuf,
        /// Documents counted at open.
        expected: u64,
        /// Documents there are now.
        found: u64,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The stored streams of a run are not those of this process.
    #[error("`{file}` holds {stored}, this process has {mine}")]
    Streams {
        /// `streams.json` of the run.
        file: PathBuf,
        /// What the file says.
        stored: String,
        /// What was computed here.
        mine: String,
    },
    /// `streams.json` is not what this program writes.
    #[error("`{file}` is not a list of streams: {why}")]
    StreamsFile {
        /// `streams.json` of the run.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Repository, revision or file that the hub does not have.
    #[error("hub `{endpoint}` has no {what}")]
    NotOnHub {
        /// HF_ENDPOINT in use.
        endpoint: String,
        /// For instance ``model `a/b` ``.
        what: String,
    },
    /// The hub refuses this token, or wants one.
    #[error("hub `{endpoint}` refuses access to {what}")]
    Refused {
        /// HF_ENDPOINT in use.
        endpoint: String,
        /// For instance ``model `a/b` ``.
        what: String,
        /// Whether a token was sent.
        token: bool,
        /// The client's error.
        source: BoxedError,
    },
    /// The hub does not answer, or not usefully.
    #[error("hub `{endpoint}` did not deliver {what}")]
    Unreachable {
        /// HF_ENDPOINT in use.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The client's error.
        source: BoxedError,
    },
    /// Offline, and the cache lacks something.
    #[error("{what} is not in the cache `{cache}`, and {why}")]
    NotCached {
        /// What is missing.
        what: String,
        /// Why it cannot be fetched.
        why: &'static str,
        /// The cache directory.
        cache: PathBuf,
    },
    /// PROMPT_TEMPLATE=chat, and the checkpoint has no template.
    #[error("PROMPT_TEMPLATE is chat, but `{}` has no chat template", dir.display())]
    NoTemplate {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// A chat template or the file it is in cannot be understood.
    #[error("chat template of `{}`: {why}", file.display())]
    Template {
        /// The file that holds it.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A chat template refuses a conversation.
    #[error("document {document}: the chat template of `{}` fails: {why}", file.display())]
    Render {
        /// Index of the document.
        document: u64,
        /// The file that holds the template.
        file: PathBuf,
        /// The template's own words, or the engine's.
        why: String,
    },
    /// A document that is no conversation.
    #[error("document {document} is no list of messages: {why}")]
    Messages {
        /// Index of the document.
        document: u64,
        /// What is wrong.
        why: String,
    },
    /// A repository that is not a model this program reads.
    #[error("model `{id}` has no {missing}")]
    NotAModel {
        /// MODEL_ID.
        id: String,
        /// The missing file.
        missing: String,
    },
    /// An index of weights that cannot be read.
    #[error("`{file}` is not an index of safetensors shards: {why}")]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// An error of a library, type-erased.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// A file, and the line (from 1) or record (from 0) in it where known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// `:12` for a line, ` record 12` for a record, or nothing.
    pub within: String,
}

impl Place {
    /// The file as a whole.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), within: String::new() }
    }

    /// A line, counted from 1 as editors do.
    pub fn line(file: impl Into<PathBuf>, line: u64) -> Self {
        Self { file: file.into(), within: format!(":{line}") }
    }

    /// A record, counted from 0.
    pub fn record(file: impl Into<PathBuf>, record: u64) -> Self {
        Self { file: file.into(), within: format!(" record {record}") }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}{}`", self.file.display(), self.within)
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no fields".into();
    }
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

impl Classify for TextError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. }
            | Self::Pattern { .. }
            | Self::Extension { .. }
            | Self::NoFiles { .. }
            | Self::Split { .. }
            | Self::Configurations { .. }
            | Self::NoField { .. }
            | Self::NotText { .. }
            | Self::Streams { .. }
            | Self::NoTemplate { .. }
            | Self::NotOnHub { .. } => Kind::Usage,
            Self::Empty { .. }
            | Self::NotUtf8 { .. }
            | Self::Json { .. }
            | Self::TooLong { .. }
            | Self::Corrupt { .. }
            | Self::Changed { .. }
            | Self::StreamsFile { .. }
            | Self::Template { .. }
            | Self::Render { .. }
            | Self::Messages { .. }
            | Self::NotAModel { .. }
            | Self::Index { .. } => Kind::Input,
            Self::Refused { .. } | Self::Unreachable { .. } | Self::NotCached { .. } => {
                Kind::Unavailable
            }
            Self::Io(e) => io_kind(e),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing { variable, .. } => format!(
                "{variable} is a path that exists, or a hub id with exactly one slash, as in `owner/name`"
            ),
            Self::Pattern { .. } => {
                "quote the pattern, so that the program and not the shell expands it".into()
            }
            Self::Extension { .. } | Self::NoFiles { .. } => {
                format!("readable are {}", super::dataset::format::EXTENSIONS.join(", "))
            }
            Self::Split { found, .. } => format!("set DATA_SPLIT to one of: {}", found.join(", ")),
            Self::Configurations { split, found, .. } => {
                format!("choose one, for instance DATA_SPLIT={}/{split}", found.first()?)
            }
            Self::Empty { .. } => "check HF_DATASET, DATA_SPLIT and DATA_LIMIT".into(),
            Self::NoField { field, found, .. } => match nearest(field, found) {
                Some(near) => format!("set TEXT_FIELD={near}"),
                None => "set TEXT_FIELD to the field that holds the text".into(),
            },
            Self::NotText { .. } => "set TEXT_FIELD to a field that holds strings".into(),
            Self::NotUtf8 { .. } => "convert it, for instance with `iconv -t utf-8`".into(),
            Self::Json { .. } => "each line of the file is one JSON object".into(),
            Self::TooLong { .. } => "split the file into lines or paragraphs".into(),
            Self::Corrupt { .. } => "copy or download the file again".into(),
            Self::Streams { .. } => "repeat the run's settings, or give RUN_ID a new name".into(),
            Self::NotOnHub { .. } => {
                "check the spelling and REVISION (DATA_REVISION of a dataset); a private repository \
                 also needs HF_TOKEN"
                    .into()
            }
            Self::Refused { token: false, .. } => {
                "set HF_TOKEN to a token that may read it; for a gated repository accept its \
                 conditions on its page first"
                    .into()
            }
            Self::Refused { .. } => {
                "HF_TOKEN is not accepted for it: renew the token, or accept the conditions on the \
                 repository's page"
                    .into()
            }
            Self::Unreachable { .. } => {
                "compute nodes often have no network: run once on a login node with the same \
                 HF_HOME, then set HF_HUB_OFFLINE=1; or check HF_ENDPOINT"
                    .into()
            }
            Self::NotCached { .. } => {
                "run once without HF_HUB_OFFLINE where there is a network, with the same HF_HOME"
                    .into()
            }
            Self::NotAModel { .. } => {
                "a model is config.json, tokenizer.json and weights (safetensors, pytorch_model.bin)".into()
            }
            Self::NoTemplate { .. } => {
                "take an instruction-tuned model, or leave PROMPT_TEMPLATE out".into()
            }
            Self::Template { .. } => {
                "the template is in chat_template.jinja or tokenizer_config.json of the model".into()
            }
            Self::Render { .. } => {
                "the template does not take this order of roles, or a field is missing: leave such \
                 documents out of the dataset"
                    .into()
            }
            Self::Messages { .. } => {
                "with PROMPT_TEMPLATE=chat, TEXT_FIELD holds a list of {role, content}".into()
            }
            Self::Io(e) => return io_hint(e),
            Self::Changed { .. } | Self::StreamsFile { .. } | Self::Index { .. } => return None,
        };
        Some(hint)
    }
}

/// The name nearest to `name`, unless all are quite different.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let distance =
        |k: &&String| strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase());
    let near = known.iter().min_by_key(distance)?;
    let close = distance(&near) <= 2.max(name.len() / 3);
    (close || known.len() == 1).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_names_the_fields_and_the_nearest() {
        let found = vec!["id".to_owned(), "txt".to_owned()];
        let at = Place::line("a.jsonl", 3);
        let e = TextError::NoField { at, field: "text".into(), found };
        assert_eq!(e.to_string(), "`a.jsonl:3` has no field `text`; it has `id`, `txt`");
        assert_eq!(e.hint().unwrap(), "set TEXT_FIELD=txt");
        assert_eq!(e.kind(), Kind::Usage);
    }
}
