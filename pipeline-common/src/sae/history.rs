//! The training curve: one record every LOG_EVERY steps, in `history.json`.
//!
//! Holds only what the run's data and configuration decide, so that an interrupted training
//! writes the same file as an uninterrupted one; rates are in `timing.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SaeError;
use crate::stage::atomic;

/// The figures of one step's batch, in units of the scaled input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps made.
    pub step: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// What is minimised.
    pub loss: f64,
    /// Squared error, summed over d_in, mean over the batch.
    pub mse: f64,
    /// Fraction of the batch's variance left unexplained.
    pub fvu: f64,
    /// 1 - fvu.
    pub explained_variance: f64,
    /// Mean active latents a row.
    pub l0: f64,
    /// Mean sum of activations a row.
    pub l1: f64,
    /// The sparsity penalty with its coefficient.
    pub sparsity: f64,
    /// The auxiliary loss without its coefficient.
    pub aux: f64,
    /// Learning rate.
    pub lr: f64,
    /// Share of latents that have not fired for DEAD_AFTER tokens.
    pub dead_fraction: f64,
    /// The same figures on held-out rows, after the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// Figures on held-out rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Rows.
    pub rows: u64,
    /// Squared error, summed over d_in, mean over rows.
    pub mse: f64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
    /// Mean active latents a row.
    pub l0: f64,
}

/// The records of a training.
#[derive(Clone, Debug)]
pub struct History {
    path: PathBuf,
    /// In the order of steps.
    pub records: Vec<Record>,
}

impl History {
    /// Goes on with the records up to `step`.
    ///
    /// # Errors
    /// I/O errors; [`SaeError::Format`] for a file that is not a history.
    pub fn open(run_dir: &Path, step: u64) -> Result<Self, SaeError> {
        let path = run_dir.join("history.json");
        let mut records: Vec<Record> = match fs_err::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            other => serde_json::from_slice(&other?)
                .map_err(|e| SaeError::Format { path: path.clone(), reason: e.to_string() })?,
        };
        records.retain(|r| r.step <= step);
        Ok(Self { path, records })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn write(&self) -> Result<(), SaeError> {
        Ok(atomic::write_json(&self.path, &self.records)?)
    }
}
