//! Lines of a possibly compressed file, one at a time, with their place for messages.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use fs_err::File;

use super::format::Packing;
use crate::text::error::{Place, TextError};

/// Longest line or paragraph: beyond it a file is hardly text, and memory must stay bounded.
pub(super) const MAX_RECORD: usize = 64 << 20;

const BUFFER: usize = 1 << 18;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads lines without their terminators; the current line lives until the next call.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    file: PathBuf,
    buffer: Vec<u8>,
    number: u64,
    start: u64,
    next_start: u64,
}

impl Lines {
    pub fn open(file: &Path, packing: Packing) -> Result<Self, TextError> {
        let raw = BufReader::with_capacity(BUFFER, File::open(file)?);
        let reader: Box<dyn BufRead + Send> = match packing {
            Packing::None => Box::new(raw),
            Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(raw))),
            Packing::Zstd => {
                let decoder = zstd::Decoder::with_buffer(raw)?;
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
        };
        let file = file.to_owned();
        Ok(Self { reader, file, buffer: Vec::new(), number: 0, start: 0, next_start: 0 })
    }

    /// Moves to the next line; false at the end of the file.
    pub fn advance(&mut self) -> Result<bool, TextError> {
        self.buffer.clear();
        self.number += 1;
        self.start = self.next_start;
        let mut limited = (&mut self.reader).take(MAX_RECORD as u64 + 2);
        let read = limited.read_until(b'\n', &mut self.buffer).map_err(|e| self.blame(e))?;
        self.next_start += read as u64;
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        if self.buffer.len() > MAX_RECORD {
            return Err(self.too_long());
        }
        if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.buffer.drain(..BYTE_ORDER_MARK.len());
            self.start += BYTE_ORDER_MARK.len() as u64;
        }
        Ok(read > 0)
    }

    /// Whether the current line holds white space at most.
    pub fn is_blank(&self) -> bool {
        self.buffer.trim_ascii().is_empty()
    }

    /// The current line as text.
    pub fn text(&self) -> Result<&str, TextError> {
        std::str::from_utf8(&self.buffer).map_err(|e| TextError::NotUtf8 {
            at: self.place(),
            byte: self.buffer[e.valid_up_to()],
            offset: self.start + e.valid_up_to() as u64,
            of: "decoded file",
        })
    }

    /// Where the current line is.
    pub fn place(&self) -> Place {
        Place::line(&self.file, self.number)
    }

    /// Bytes before the current line.
    pub fn offset(&self) -> u64 {
        self.start
    }

    pub fn too_long(&self) -> TextError {
        TextError::TooLong { at: self.place(), limit: MAX_RECORD }
    }

    /// Decoders report broken data as I/O errors of these kinds.
    fn blame(&self, error: io::Error) -> TextError {
        use io::ErrorKind as E;
        match error.kind() {
            E::UnexpectedEof | E::InvalidData | E::InvalidInput | E::Other => TextError::Corrupt {
                file: self.file.clone(),
                why: format!("{error} at line {}", self.number),
            },
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<(String, u64)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, bytes).unwrap();
        let mut lines = Lines::open(&path, Packing::None).unwrap();
        let mut out = Vec::new();
        while lines.advance().unwrap() {
            out.push((lines.text().unwrap().to_owned(), lines.offset()));
        }
        out
    }

    #[test]
    fn terminators_and_the_byte_order_mark_are_not_text() {
        let found = lines(b"\xef\xbb\xbfa\r\n\nb\rc\nd");
        let expected = [("a", 3), ("", 6), ("b\rc", 7), ("d", 11)];
        assert_eq!(found, expected.map(|(t, o)| (t.to_owned(), o)));
        assert!(lines(b"").is_empty());
    }
}
