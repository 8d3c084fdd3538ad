//! A JSON configuration, read field by field so that messages name the field.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::sae::SaeError;

/// The fields of one JSON object.
#[derive(Clone, Debug)]
pub struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file that holds one object.
    ///
    /// # Errors
    /// I/O errors; what is no JSON object.
    pub fn read(path: &Path) -> Result<Self, SaeError> {
        let map = serde_json::from_slice(&fs_err::read(path)?)
            .map_err(|e| SaeError::Format { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The object in a field; empty where there is none.
    ///
    /// # Errors
    /// If the field is something else.
    pub fn section(&self, name: &str) -> Result<Self, SaeError> {
        let map = self.optional(name)?.unwrap_or_default();
        Ok(Self { path: self.path.clone(), map })
    }

    /// A field that may be missing or null.
    ///
    /// # Errors
    /// If it has another type.
    pub fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SaeError> {
        let Some(value) = self.map.get(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let read = serde_json::from_value(value.clone());
        Ok(Some(read.map_err(|e| SaeError::Format {
            path: self.path.clone(),
            reason: format!("`{name}`: {e}"),
        })?))
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, SaeError> {
        let missing =
            || SaeError::Format { path: self.path.clone(), reason: format!("`{name}` is missing") };
        self.optional(name)?.ok_or_else(missing)
    }

    /// The first of some names, under which a field was known at some time, that is there.
    ///
    /// # Errors
    /// If it has another type.
    pub fn first<T: DeserializeOwned>(&self, names: &[&str]) -> Result<Option<T>, SaeError> {
        for name in names {
            if let Some(value) = self.optional(name)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Refuses a field's value.
    pub fn refuse(
        &self,
        field: &str,
        found: impl std::fmt::Display,
        expected: &str,
        hint: &'static str,
    ) -> SaeError {
        SaeError::Field {
            path: self.path.clone(),
            field: format!("`{field}`"),
            found: format!("`{found}`"),
            expected: expected.to_owned(),
            hint,
        }
    }

    /// The number of active latents a row, which must not exceed `d_sae`.
    ///
    /// # Errors
    /// [`SaeError::Field`].
    pub fn checked_k(&self, k: usize, d_sae: usize) -> Result<usize, SaeError> {
        if (1..=d_sae).contains(&k) {
            return Ok(k);
        }
        let expected = format!("1 to {d_sae}, the number of latents");
        Err(self.refuse("k", k, &expected, "the configuration belongs to other weights"))
    }
}
