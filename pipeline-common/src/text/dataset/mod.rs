//! Documents of a dataset in a fixed order, read with bounded memory from any point on.
//!
//! A dataset is a file, a folder, a glob or a hub repository; its documents are numbered from 0
//! through its files in sorted order. Opening one counts the documents, up to the limit and
//! without decoding them, and tries the first of each file.

pub(super) mod format;
mod jsonl;
mod lines;
mod nested;
mod parquet;
mod plain;
mod source;
mod split;

use std::{
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use self::{
    format::{Format, Layout},
    jsonl::Jsonl,
    nested::Nested,
    parquet::Parquet,
    plain::Plain,
    source::Source,
};
use super::{Hub, TextError, error::Place};

/// Bytes at each end of a file that go into the fingerprint.
const DIGESTED: u64 = 1 << 20;

/// One record of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Position in the dataset, from 0.
    pub index: u64,
    /// Its text, which may be empty.
    pub text: String,
}

/// Which documents to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSpec {
    /// A path, folder, glob or hub id.
    pub source: String,
    /// Branch, tag or commit of a hub repository.
    pub revision: String,
    /// Narrows folders and repositories whose files are named after splits.
    pub split: String,
    /// The field of a record that holds the text; plain text has none.
    pub text_field: String,
    /// Whether the field holds messages: a document's text is then their JSON.
    pub messages: bool,
    /// Documents to read at most.
    pub limit: Option<u64>,
}

/// A dataset, exactly enough to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// HF_DATASET as given.
    pub source: String,
    /// The commit that DATA_REVISION resolved to; local files have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Documents read.
    pub documents: u64,
    /// Changes when the files change.
    pub fingerprint: String,
}

/// The documents of a dataset.
#[derive(Clone, Debug)]
pub struct Dataset {
    field: Field,
    files: Vec<DataFile>,
    len: u64,
    commit: Option<String>,
}

/// Which part of a record is the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub name: String,
    /// Any value is taken, as JSON; a string is taken to be JSON already.
    pub json: bool,
}

#[derive(Clone, Debug)]
struct DataFile {
    name: PathBuf,
    path: PathBuf,
    format: Format,
    documents: u64,
}

type Texts = Box<dyn Iterator<Item = Result<String, TextError>> + Send>;

impl Dataset {
    /// Finds the files, downloading what is on the hub, and counts their documents.
    ///
    /// # Errors
    /// A source that does not exist, holds no readable file or no document; a text field that is
    /// missing or no string; anything wrong with the first document of a file.
    pub fn open(spec: &DatasetSpec, hub: &Hub) -> Result<Self, TextError> {
        let source = Source::resolve(spec, hub)?;
        let field = Field { name: spec.text_field.clone(), json: spec.messages };
        let commit = source.commit().map(str::to_owned);
        let mut this = Self { field, files: Vec::new(), len: 0, commit };
        let limit = spec.limit.unwrap_or(u64::MAX);
        for i in 0..source.len() {
            if this.len == limit {
                break;
            }
            let (name, path) = source.file(i)?;
            let file = DataFile::open(name, path, limit - this.len)?;
            if file.documents > 0 {
                file.texts(&this.field, 0)?.next().transpose()?;
            }
            this.len += file.documents;
            this.files.push(file);
        }
        if this.len == 0 {
            let source_name = spec.source.clone();
            return Err(TextError::Empty { source_name, files: this.files.len() });
        }
        Ok(this)
    }

    /// Files of which it is known how many documents they hold, in this order, without opening
    /// them; the text is their field `text`.
    ///
    /// # Errors
    /// [`TextError::Extension`] for a name that is not one of a data file.
    pub fn of_files(files: Vec<(PathBuf, u64)>) -> Result<Self, TextError> {
        let field = Field { name: "text".into(), json: false };
        let len = files.iter().map(|(_, documents)| documents).sum();
        let file = |(path, documents): (PathBuf, u64)| match Format::of(&path) {
            Some(format) => Ok(DataFile { name: path.clone(), path, format, documents }),
            None => Err(TextError::Extension { file: path }),
        };
        let files = files.into_iter().map(file).collect::<Result<_, _>>()?;
        Ok(Self { field, files, len, commit: None })
    }

    /// What a run says about this dataset, which HF_DATASET calls `source`.
    ///
    /// # Errors
    /// As [`Self::fingerprint`].
    pub fn record(&self, source: &str) -> Result<DatasetRecord, TextError> {
        Ok(DatasetRecord {
            source: source.to_owned(),
            revision: self.commit.clone(),
            documents: self.len,
            fingerprint: self.fingerprint()?,
        })
    }

    /// Number of documents, after the limit.
    #[expect(clippy::len_without_is_empty, reason = "an empty dataset does not open")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The files that hold the documents.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The documents of a range, clipped to [`Self::len`], in order.
    ///
    /// # Errors
    /// Anything wrong with the file that holds the first of them; items are errors for the rest,
    /// and nothing follows the first error.
    pub fn documents(&self, range: Range<u64>) -> Result<Documents, TextError> {
        let end = range.end.min(self.len);
        let mut skip = range.start.min(end);
        let mut files = self.files.clone().into_iter();
        let mut documents = Documents {
            field: self.field.clone(),
            next: skip,
            left: end - skip,
            files: Vec::new().into_iter(),
            current: None,
        };
        if documents.left == 0 {
            return Ok(documents);
        }
        for file in files.by_ref() {
            if skip < file.documents {
                documents.current = Some(Current::open(file, &self.field, skip)?);
                break;
            }
            skip -= file.documents;
        }
        documents.files = files;
        Ok(documents)
    }

    /// A digest that changes when the files do: their names, sizes, document counts and the first
    /// and last MiB of each. Files beyond the limit do not count.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, TextError> {
        let mut digest = blake3::Hasher::new();
        for file in &self.files {
            let mut handle = fs::File::open(&file.path)?;
            let size = handle.metadata()?.len();
            let head = format!("{}\0{size}\0{}\0", file.name.display(), file.documents);
            digest.update(head.as_bytes());
            digest_bytes(&mut handle, DIGESTED, &mut digest)?;
            handle.seek(SeekFrom::Start(size.saturating_sub(DIGESTED)))?;
            digest_bytes(&mut handle, DIGESTED, &mut digest)?;
        }
        Ok(digest.finalize().to_hex().to_string())
    }
}

/// A value as the text of a document.
fn json_text(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn digest_bytes(
    file: &mut fs::File,
    at_most: u64,
    digest: &mut blake3::Hasher,
) -> std::io::Result<()> {
    digest.update_reader(file.take(at_most))?;
    Ok(())
}

impl DataFile {
    fn open(name: PathBuf, path: PathBuf, at_most: u64) -> Result<Self, TextError> {
        let Some(format) = Format::of(&name) else {
            return Err(TextError::Extension { file: path });
        };
        let documents = match format.layout {
            Layout::Jsonl => jsonl::count(&path, format.packing, at_most),
            Layout::Plain => plain::count(&path, format.packing, at_most),
            Layout::Parquet => parquet::count(&path, at_most),
        }?;
        Ok(Self { name, path, format, documents })
    }

    fn texts(&self, field: &Field, skip: u64) -> Result<Texts, TextError> {
        let Format { layout, packing } = self.format;
        Ok(match layout {
            Layout::Jsonl => {
                let mut records = Jsonl::open(&self.path, packing, field)?;
                records.move_past(skip)?;
                Box::new(records)
            }
            Layout::Plain if field.json => {
                let (at, field) = (Place::file(&self.path), field.name.clone());
                return Err(TextError::NoField { at, field, found: Vec::new() });
            }
            Layout::Plain => {
                let mut documents = Plain::open(&self.path, packing)?;
                documents.move_past(skip)?;
                Box::new(documents)
            }
            Layout::Parquet if field.json && parquet::is_nested(&self.path, &field.name)? => {
                Box::new(Nested::open(&self.path, &field.name, skip)?)
            }
            Layout::Parquet => Box::new(Parquet::open(&self.path, &field.name, skip)?),
        })
    }
}

/// An iterator over documents; it owns what it reads from and can move to another thread.
pub struct Documents {
    field: Field,
    next: u64,
    left: u64,
    files: std::vec::IntoIter<DataFile>,
    current: Option<Current>,
}

struct Current {
    file: DataFile,
    texts: Texts,
    read: u64,
}

impl Current {
    fn open(file: DataFile, field: &Field, skip: u64) -> Result<Self, TextError> {
        let texts = file.texts(field, skip)?;
        Ok(Self { file, texts, read: skip })
    }

    /// The next text of the file; `None` after as many as were counted.
    fn next(&mut self) -> Result<Option<String>, TextError> {
        if self.read == self.file.documents {
            return Ok(None);
        }
        let Some(text) = self.texts.next().transpose()? else {
            let (file, expected) = (self.file.path.clone(), self.file.documents);
            return Err(TextError::Changed { file, expected, found: self.read });
        };
        self.read += 1;
        Ok(Some(text))
    }
}

impl Documents {
    fn advance(&mut self) -> Result<Option<String>, TextError> {
        loop {
            if let Some(current) = &mut self.current
                && let Some(text) = current.next()?
            {
                return Ok(Some(text));
            }
            let Some(file) = self.files.next() else { return Ok(None) };
            self.current = Some(Current::open(file, &self.field, 0)?);
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        match self.advance() {
            Ok(text) => {
                let index = self.next;
                self.next += 1;
                self.left -= 1;
                text.map(|text| Ok(Document { index, text }))
            }
            Err(e) => {
                self.left = 0;
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests;
