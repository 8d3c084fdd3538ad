//! Parquet: one string column, read row group by row group and page by page.
//!
//! Only the text column is decoded. A null is an empty document, so that documents keep their
//! numbers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fs_err::File;
use parquet::{
    basic::Type as Physical,
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData,
        reader::{FileReader, SerializedFileReader},
    },
};

use crate::text::error::{Place, TextError};

/// Records decoded at a time; they share the memory of their page.
const BATCH: usize = 256;

/// Counts records from the footer.
pub(super) fn count(file: &Path, at_most: u64) -> Result<u64, TextError> {
    let reader = open(file)?;
    let groups = (0..reader.num_row_groups()).map(|g| rows_of(reader.metadata(), g));
    Ok(groups.fold(0, u64::saturating_add).min(at_most))
}

/// The texts of a file, in order.
pub(super) struct Parquet {
    file: PathBuf,
    reader: SerializedFileReader<std::fs::File>,
    column: usize,
    nullable: bool,
    /// Next row group to open.
    group: usize,
    pages: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: std::vec::IntoIter<Option<ByteArray>>,
    record: u64,
}

impl Parquet {
    /// Opens the file at record `skip`.
    pub fn open(file: &Path, field: &str, skip: u64) -> Result<Self, TextError> {
        let reader = open(file)?;
        let (column, nullable) = text_column(file, reader.metadata(), field)?;
        let mut this = Self {
            file: file.to_owned(),
            reader,
            column,
            nullable,
            group: 0,
            pages: None,
            batch: Vec::new().into_iter(),
            record: 0,
        };
        this.move_to(skip)?;
        Ok(this)
    }

    fn move_to(&mut self, mut records: u64) -> Result<(), TextError> {
        self.record = records;
        while self.group < self.reader.num_row_groups() {
            let rows = rows_of(self.reader.metadata(), self.group);
            if records < rows {
                return if records == 0 { Ok(()) } else { self.skip_in_group(records) };
            }
            records -= rows;
            self.group += 1;
        }
        Ok(())
    }

    fn skip_in_group(&mut self, records: u64) -> Result<(), TextError> {
        self.open_group()?;
        let Some(pages) = &mut self.pages else { return Ok(()) };
        let wanted = usize::try_from(records).unwrap_or(usize::MAX);
        let skipped = guarded(&self.file, || pages.skip_records(wanted))?;
        if skipped < wanted {
            return Err(corrupt(&self.file, format!("row group {} is short", self.group - 1)));
        }
        Ok(())
    }

    fn open_group(&mut self) -> Result<(), TextError> {
        let (reader, group, column) = (&self.reader, self.group, self.column);
        let pages = guarded(&self.file, || reader.get_row_group(group)?.get_column_reader(column))?;
        self.group += 1;
        self.pages = match pages {
            ColumnReader::ByteArrayColumnReader(pages) => Some(pages),
            _ => return Err(corrupt(&self.file, "the text column changes its type")),
        };
        Ok(())
    }

    /// Decodes the next batch; false at the end of the file.
    fn fill(&mut self) -> Result<bool, TextError> {
        loop {
            if let Some(pages) = &mut self.pages {
                let (mut levels, mut values) = (Vec::new(), Vec::with_capacity(BATCH));
                let nullable = self.nullable;
                let (read, ..) = guarded(&self.file, || {
                    pages.read_records(BATCH, nullable.then_some(&mut levels), None, &mut values)
                })?;
                if read > 0 {
                    let mut values = values.into_iter();
                    let batch: Vec<_> = if nullable {
                        levels.iter().map(|l| if *l > 0 { values.next() } else { None }).collect()
                    } else {
                        values.map(Some).collect()
                    };
                    self.batch = batch.into_iter();
                    return Ok(true);
                }
            }
            if self.group == self.reader.num_row_groups() {
                return Ok(false);
            }
            self.open_group()?;
        }
    }

    fn text(&mut self, value: Option<ByteArray>) -> Result<String, TextError> {
        let record = self.record;
        self.record += 1;
        let Some(value) = value else { return Ok(String::new()) };
        let bytes = value.data();
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|e| TextError::NotUtf8 {
            at: Place::record(&self.file, record),
            byte: bytes[e.valid_up_to()],
            offset: e.valid_up_to() as u64,
            of: "record",
        })
    }
}

impl Iterator for Parquet {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(value) = self.batch.next() {
                return Some(self.text(value));
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

pub(super) fn open(file: &Path) -> Result<SerializedFileReader<std::fs::File>, TextError> {
    let handle = File::open(file)?.into_parts().0;
    guarded(file, || SerializedFileReader::new(handle))
}

/// Whether a field is a list or structure; false where there is none of that name.
pub(super) fn is_nested(file: &Path, field: &str) -> Result<bool, TextError> {
    let reader = open(file)?;
    let schema = reader.metadata().file_metadata().schema();
    Ok(schema.get_fields().iter().any(|f| f.name() == field && !f.is_primitive()))
}

/// The index of the text column among the leaves, and whether it may hold nulls.
fn text_column(
    file: &Path,
    metadata: &ParquetMetaData,
    field: &str,
) -> Result<(usize, bool), TextError> {
    let schema = metadata.file_metadata().schema_descr();
    let at = || Place::file(file);
    let fields = schema.root_schema().get_fields();
    let Some(top) = fields.iter().find(|f| f.name() == field) else {
        let found = fields.iter().map(|f| f.name().to_owned()).collect();
        return Err(TextError::NoField { at: at(), field: field.to_owned(), found });
    };
    let not_text =
        |found: String| Err(TextError::NotText { at: at(), field: field.to_owned(), found });
    if !top.is_primitive() {
        return not_text("a group".into());
    }
    let leaf = schema.columns().iter().position(|c| c.path().parts() == [field]);
    let Some(index) = leaf else { return not_text("not a column".into()) };
    let column = schema.column(index);
    if column.physical_type() != Physical::BYTE_ARRAY || column.max_rep_level() > 0 {
        return not_text(format!("of type {}", column.physical_type()));
    }
    Ok((index, column.max_def_level() > 0))
}

pub(super) fn rows_of(metadata: &ParquetMetaData, group: usize) -> u64 {
    u64::try_from(metadata.row_group(group).num_rows()).unwrap_or(0)
}

pub(super) fn corrupt(file: &Path, why: impl Into<String>) -> TextError {
    TextError::Corrupt { file: file.to_owned(), why: why.into() }
}

/// Runs a decoder that reports bad bytes as errors and, in places, by panicking.
pub(super) fn guarded<T>(
    file: &Path,
    decode: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, TextError> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(corrupt(file, e.to_string())),
        Err(_panic) => Err(corrupt(file, "the decoder gave up on it")),
    }
}
