//! Parquet: one column of lists or structures, record by record, as JSON.
//!
//! Slower than a column of strings, and a row group's values are held at a time: records before
//! the first one wanted are decoded too, but for whole row groups.

use std::path::{Path, PathBuf};

use parquet::{
    file::reader::FileReader,
    record::{Row, reader::RowIter},
    schema::types::Type,
};

use super::{
    json_text,
    parquet::{corrupt, guarded, open, rows_of},
};
use crate::text::error::TextError;

/// The values of the column, in order.
pub(super) struct Nested {
    file: PathBuf,
    projection: Type,
    /// Next row group to decode, and how many there are.
    group: usize,
    groups: usize,
    /// What is left of the one before.
    rows: std::vec::IntoIter<String>,
}

impl Nested {
    /// Opens the file at record `skip`.
    pub fn open(file: &Path, field: &str, skip: u64) -> Result<Self, TextError> {
        let reader = open(file)?;
        let schema = reader.metadata().file_metadata().schema();
        let column = schema.get_fields().iter().filter(|f| f.name() == field).cloned().collect();
        let projection = Type::group_type_builder(schema.name()).with_fields(column).build();
        let projection = projection.map_err(|e| corrupt(file, e.to_string()))?;
        let (groups, rows) = (reader.num_row_groups(), Vec::new().into_iter());
        let mut this = Self { file: file.to_owned(), projection, group: 0, groups, rows };
        let mut left = skip;
        while this.group < groups {
            let rows = rows_of(reader.metadata(), this.group);
            if left < rows {
                this.read_group(usize::try_from(left).unwrap_or(usize::MAX))?;
                break;
            }
            left -= rows;
            this.group += 1;
        }
        Ok(this)
    }

    /// Decodes the records of the row group behind the first `skip`.
    fn read_group(&mut self, skip: usize) -> Result<(), TextError> {
        let reader = open(&self.file)?;
        let (group, projection) = (self.group, self.projection.clone());
        let rows: Vec<String> = guarded(&self.file, || {
            let group = reader.get_row_group(group)?;
            let rows = RowIter::from_row_group(Some(projection), group.as_ref())?;
            rows.skip(skip).map(|row| row.map(|row| text(&row))).collect()
        })?;
        self.rows = rows.into_iter();
        self.group += 1;
        Ok(())
    }
}

impl Iterator for Nested {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(text) = self.rows.next() {
                return Some(Ok(text));
            }
            if self.group == self.groups {
                return None;
            }
            if let Err(e) = self.read_group(0) {
                return Some(Err(e));
            }
        }
    }
}

fn text(row: &Row) -> String {
    let value = row.get_column_iter().next().map(|(_, field)| field.to_json_value());
    json_text(value.unwrap_or_default())
}
