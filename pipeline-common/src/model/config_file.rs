//! `config.json` as keys and values, and the ways to refuse one.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ModelError;
use crate::kernels::activation::Activation;

/// No size of a real model comes near it; products of three stay far from overflow.
const LARGEST: usize = 1 << 20;

/// `config.json` before it is understood.
pub(super) struct ConfigFile {
    pub path: PathBuf,
    pub keys: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the file of a checkpoint's directory.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(ModelError::Missing { what: "config.json", dir: dir.to_owned() });
        }
        let text = fs_err::read(&path).map_err(|e| ModelError::file(&path, e))?;
        let keys = serde_json::from_slice(&text).map_err(|e| ModelError::file(&path, e))?;
        Ok(Self { path, keys })
    }

    /// The value of a key; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// Refuses a key unless it is absent or has one of the values written in `inert`.
    pub fn refuse_unless(&self, key: &str, inert: &[&str]) -> Result<(), ModelError> {
        match self.get(key) {
            Some(value) if !inert.contains(&value.to_string().as_str()) => {
                let expected = if inert.is_empty() { "null".into() } else { inert.join(", ") };
                Err(self.unsupported(key, value, &expected))
            }
            _ => Ok(()),
        }
    }

    /// The error for a value that is not implemented.
    pub fn unsupported(&self, key: &str, found: impl ToString, expected: &str) -> ModelError {
        let (path, field) = (self.path.clone(), key.to_owned());
        ModelError::Unsupported { path, field, found: found.to_string(), expected: expected.into() }
    }

    /// The activation function under `key`.
    pub fn activation(&self, name: &str) -> Result<Activation, ModelError> {
        Activation::named(name)
            .ok_or_else(|| self.unsupported("hidden_act", format!("`{name}`"), Activation::NAMES))
    }

    /// Refuses sizes that no model has, among them those that make later arithmetic overflow.
    pub fn sizes(&self, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
        let limit = format!("1 to {LARGEST}");
        match sizes.iter().find(|(_, n)| !(1..=LARGEST).contains(n)) {
            Some((key, n)) => Err(self.unsupported(key, n, &limit)),
            None => Ok(()),
        }
    }

    /// Refuses a count that does not divide another.
    pub fn divides(&self, key: &str, divisor: usize, of: (&str, usize)) -> Result<(), ModelError> {
        if of.1.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(self.unsupported(key, divisor, &format!("a divisor of {} {}", of.0, of.1)))
    }

    /// The keys that a family understands.
    pub fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ModelError> {
        serde_json::from_value(Value::Object(self.keys.clone()))
            .map_err(|e| ModelError::file(&self.path, e))
    }
}
