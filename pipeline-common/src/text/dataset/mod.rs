//! Documents of a dataset in a fixed order, read with bounded memory from any point on.
//!
//! A dataset is a file, a folder, a glob or a hub repository; its documents are numbered from 0
//! through its files in sorted order. Opening one counts the documents, up to the limit and
//! without decoding them, and tries the first of each file.

pub(super) mod format;
mod jsonl;
mod lines;
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

use self::{
    format::{Format, Layout},
    jsonl::Jsonl,
    parquet::Parquet,
    plain::Plain,
    source::Source,
};
use super::{Hub, TextError};

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
    /// Narrows folders and repositories whose files are named after splits.
    pub split: String,
    /// The field of a record that holds the text; plain text has none.
    pub text_field: String,
    /// Documents to read at most.
    pub limit: Option<u64>,
}

/// The documents of a dataset.
#[derive(Clone, Debug)]
pub struct Dataset {
    text_field: String,
    files: Vec<DataFile>,
    len: u64,
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
        let mut this = Self { text_field: spec.text_field.clone(), files: Vec::new(), len: 0 };
        let limit = spec.limit.unwrap_or(u64::MAX);
        for i in 0..source.len() {
            if this.len == limit {
                break;
            }
            let (name, path) = source.file(i)?;
            let file = DataFile::open(name, path, limit - this.len)?;
            if file.documents > 0 {
                file.texts(&spec.text_field, 0)?.next().transpose()?;
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

    /// Number of documents, after the limit; never zero.
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
            text_field: self.text_field.clone(),
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
                documents.current = Some(Current::open(file, &self.text_field, skip)?);
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

    fn texts(&self, text_field: &str, skip: u64) -> Result<Texts, TextError> {
        let Format { layout, packing } = self.format;
        Ok(match layout {
            Layout::Jsonl => {
                let mut records = Jsonl::open(&self.path, packing, text_field)?;
                records.move_past(skip)?;
                Box::new(records)
            }
            Layout::Plain => {
                let mut documents = Plain::open(&self.path, packing)?;
                documents.move_past(skip)?;
                Box::new(documents)
            }
            Layout::Parquet => Box::new(Parquet::open(&self.path, text_field, skip)?),
        })
    }
}

/// An iterator over documents; it owns what it reads from and can move to another thread.
pub struct Documents {
    text_field: String,
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
    fn open(file: DataFile, text_field: &str, skip: u64) -> Result<Self, TextError> {
        let texts = file.texts(text_field, skip)?;
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
            self.current = Some(Current::open(file, &self.text_field, 0)?);
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
