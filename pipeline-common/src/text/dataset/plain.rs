//! Plain text: a document per line, or per paragraph.
//!
//! A file's first MiB decides. If blank lines separate the text there, with at most
//! [`LINES_PER_PARAGRAPH`] lines between them on average, every run of lines without a blank one
//! is a document; otherwise every line is. So hard-wrapped prose keeps its paragraphs, and a
//! list of sentences survives a stray blank line. Blank lines are never documents.

use std::path::Path;

use super::{
    format::Packing,
    lines::{Lines, MAX_RECORD},
};
use crate::text::error::TextError;

/// Text with blank lines rarer than this is a document per line.
const LINES_PER_PARAGRAPH: u64 = 50;

/// How much of a file decides between lines and paragraphs, in bytes.
const SAMPLE: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Line,
    Paragraph,
}

/// Counts documents, reading no further than `at_most` of them.
pub(super) fn count(file: &Path, packing: Packing, at_most: u64) -> Result<u64, TextError> {
    let mut documents = Plain::open(file, packing)?;
    let mut count = 0;
    while count < at_most && documents.advance(|_| Ok(()))? {
        count += 1;
    }
    Ok(count)
}

/// The documents of a file, in order.
pub(super) struct Plain {
    lines: Lines,
    unit: Unit,
}

impl Plain {
    pub fn open(file: &Path, packing: Packing) -> Result<Self, TextError> {
        let unit = unit_of(Lines::open(file, packing)?)?;
        Ok(Self { lines: Lines::open(file, packing)?, unit })
    }

    /// Moves past `documents` documents; stops at the end of the file.
    pub fn move_past(&mut self, documents: u64) -> Result<(), TextError> {
        for _ in 0..documents {
            if !self.advance(|_| Ok(()))? {
                break;
            }
        }
        Ok(())
    }

    /// Shows each line of the next document to `each`; false at the end of the file.
    fn advance(
        &mut self,
        mut each: impl FnMut(&Lines) -> Result<(), TextError>,
    ) -> Result<bool, TextError> {
        let mut found = false;
        while self.lines.advance()? {
            if self.lines.is_blank() {
                if found {
                    break;
                }
                continue;
            }
            each(&self.lines)?;
            found = true;
            if self.unit == Unit::Line {
                break;
            }
        }
        Ok(found)
    }
}

impl Iterator for Plain {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = String::new();
        let found = self.advance(|lines| {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(lines.text()?);
            if text.len() > MAX_RECORD { Err(lines.too_long()) } else { Ok(()) }
        });
        match found {
            Ok(true) => Some(Ok(text)),
            Ok(false) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

fn unit_of(mut lines: Lines) -> Result<Unit, TextError> {
    let (mut text, mut breaks, mut in_gap) = (0_u64, 0_u64, true);
    while lines.offset() < SAMPLE && lines.advance()? {
        let blank = lines.is_blank();
        text += u64::from(!blank);
        breaks += u64::from(!blank && in_gap);
        in_gap = blank;
    }
    // The first text line ends the gap before it, which separates nothing.
    let separators = breaks.saturating_sub(1);
    let paragraphs = separators > 0 && text <= LINES_PER_PARAGRAPH * (separators + 1);
    Ok(if paragraphs { Unit::Paragraph } else { Unit::Line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<String>, TextError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.txt");
        fs_err::write(&path, bytes).unwrap();
        let all: Result<Vec<String>, _> = Plain::open(&path, Packing::None)?.collect();
        if let Ok(all) = &all {
            assert_eq!(count(&path, Packing::None, u64::MAX).unwrap(), all.len() as u64);
        }
        all
    }

    #[test]
    fn lines_are_documents_unless_blank_lines_separate_paragraphs() {
        assert_eq!(read(b"one\ntwo\n").unwrap(), ["one", "two"]);
        assert_eq!(read(b"\n\none\r\ntwo\n \n\n").unwrap(), ["one", "two"]);
        assert_eq!(read(b"one\ntwo\n\n \nthree\n").unwrap(), ["one\ntwo", "three"]);
        assert!(read(b"\n \n").unwrap().is_empty());
    }

    #[test]
    fn a_stray_blank_line_in_a_long_list_changes_nothing() {
        let mut list: Vec<String> = (0..300).map(|i| format!("line {i}")).collect();
        list.insert(150, String::new());
        assert_eq!(read(list.join("\n").as_bytes()).unwrap().len(), 300);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_found_by_line_and_offset() {
        let e = read(b"good\nbad \xe9t\xe9\n").unwrap_err();
        let said = "f.txt:2` is not UTF-8: byte 0xe9 at byte offset 9 of the decoded file";
        assert!(e.to_string().contains(said), "{e}");
    }
}
