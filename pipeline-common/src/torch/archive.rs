//! Zip archives, as `torch.save` and `numpy.savez` write them, read in place.

use std::{
    collections::BTreeMap,
    io::{Cursor, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use flate2::{Crc, read::DeflateDecoder};
use zip::{CompressionMethod, ZipArchive};

use super::{Bytes, TorchError};

/// Deflate makes no more than this many bytes of one.
const DEFLATE_RATIO: u64 = 1032;

/// One file in an archive.
#[derive(Debug)]
struct Entry {
    range: Range<usize>,
    size: u64,
    crc: u32,
    method: CompressionMethod,
}

/// The directory of an archive.
#[derive(Debug)]
pub struct Archive<'a> {
    path: PathBuf,
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// What is no zip archive, or names places outside the file.
    pub fn open(path: &Path, bytes: &'a [u8]) -> Result<Self, TorchError> {
        let bad = |reason: String| TorchError::Format { path: path.to_owned(), reason };
        let zip = |e: zip::result::ZipError| bad(format!("not a readable zip archive: {e}"));
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(zip)?;
        let mut entries = BTreeMap::new();
        for i in 0..archive.len() {
            let file = archive.by_index_raw(i).map_err(zip)?;
            let name = file.name().map_err(zip)?.into_owned();
            let begin = file.data_start().and_then(|n| usize::try_from(n).ok());
            let length = usize::try_from(file.compressed_size()).ok();
            let end = begin.zip(length).and_then(|(begin, length)| begin.checked_add(length));
            let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= bytes.len())) else {
                return Err(bad(format!("`{name}` lies outside the file")));
            };
            let (size, crc, method) = (file.size(), file.crc32(), file.compression());
            entries.insert(name, Entry { range: begin..end, size, crc, method });
        }
        Ok(Self { path: path.to_owned(), bytes, entries })
    }

    /// Names of all files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The contents of a file, its checksum verified.
    ///
    /// # Errors
    /// If there is none of this name, it is damaged, or compressed in another way than deflate.
    pub fn read(&self, name: &str) -> Result<Bytes, TorchError> {
        let Some(entry) = self.entries.get(name) else {
            return Err(self.bad(format!("`{name}` is missing")));
        };
        let raw = &self.bytes[entry.range.clone()];
        let contents = match entry.method {
            CompressionMethod::Stored if raw.len() as u64 == entry.size => {
                Bytes::Mapped(entry.range.clone())
            }
            CompressionMethod::DEFLATE => Bytes::Owned(self.inflate(name, raw, entry.size)?),
            other => {
                let what = format!("`{name}` is compressed as {other:?} or has a wrong length");
                return Err(self.bad(what));
            }
        };
        let mut crc = Crc::new();
        crc.update(self.slice(&contents));
        if crc.sum() != entry.crc {
            return Err(self.bad(format!("`{name}` is damaged: its CRC-32 differs")));
        }
        Ok(contents)
    }

    /// Where a file lies that is not compressed; nothing of it is read.
    ///
    /// # Errors
    /// If there is none of this name, or it is compressed.
    pub fn place(&self, name: &str) -> Result<Range<usize>, TorchError> {
        let Some(entry) = self.entries.get(name) else {
            return Err(self.bad(format!("`{name}` is missing")));
        };
        if entry.method != CompressionMethod::Stored || entry.range.len() as u64 != entry.size {
            return Err(self.bad(format!("`{name}` is compressed, which torch never does")));
        }
        Ok(entry.range.clone())
    }

    /// The bytes that contents stand for.
    pub fn slice<'b>(&self, contents: &'b Bytes) -> &'b [u8]
    where
        'a: 'b,
    {
        match contents {
            Bytes::Mapped(range) => &self.bytes[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    fn inflate(&self, name: &str, raw: &[u8], size: u64) -> Result<Vec<u8>, TorchError> {
        if size > (raw.len() as u64 + 1).saturating_mul(DEFLATE_RATIO) {
            return Err(self.bad(format!("`{name}` claims {size} bytes in {}", raw.len())));
        }
        let mut out = vec![];
        let read = DeflateDecoder::new(raw).take(size + 1).read_to_end(&mut out);
        match read {
            Ok(n) if n as u64 == size => Ok(out),
            Ok(n) => Err(self.bad(format!("`{name}` has {n} bytes, expected {size}"))),
            Err(e) => Err(self.bad(format!("`{name}` is damaged: {e}"))),
        }
    }

    /// An error in this file.
    pub fn bad(&self, reason: String) -> TorchError {
        TorchError::Format { path: self.path.clone(), reason }
    }
}
