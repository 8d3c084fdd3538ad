//! The figures of a training: one record every LOG_EVERY steps.
//!
//! They hold only what the run's data and configuration decide, so that an interrupted training
//! writes the same as an uninterrupted one; the clock's part is in [`super::curves`].

use serde::{Deserialize, Serialize};

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
    /// Factor on the sparsity coefficient: its warm-up.
    pub sparsity_factor: f64,
    /// The auxiliary loss without its coefficient.
    pub aux: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients, before it is clipped.
    pub gradient_norm: f64,
    /// Share of latents that have not fired for DEAD_AFTER tokens.
    pub dead_fraction: f64,
    /// Figures on held-out rows, after the last step and every VALIDATE_EVERY steps.
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

/// Fraction of `variance` that an error leaves unexplained: a finite number, which JSON can hold,
/// for rows without variance too.
pub fn unexplained(mse: f64, variance: f64) -> f64 {
    (mse / variance.max(f64::MIN_POSITIVE)).min(f64::MAX)
}
