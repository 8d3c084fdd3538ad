//! Statistics of the stored rows, accumulated at capture.
//!
//! Sums are f64 and taken in row order, so they do not depend on threads.

use serde::{Deserialize, Serialize};

/// Sums over rows of one shard or of a whole hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Rows seen.
    pub rows: u64,
    /// Sum of the rows' Euclidean norms.
    pub sum_norm: f64,
    /// Sum of the rows' squared norms.
    pub sum_square: f64,
    /// Largest magnitude of any element.
    pub max_abs: f64,
    /// Sum of the rows, `[d_in]`; in the shard file, not in the manifest.
    #[serde(skip)]
    pub sum: Vec<f64>,
}

impl Stats {
    /// No rows yet, of width `d_in`.
    pub fn new(d_in: usize) -> Self {
        Self { sum: vec![0.0; d_in], ..Self::default() }
    }

    /// Adds one row.
    pub fn add(&mut self, row: &[f32]) {
        let (mut square, mut max) = (0.0_f64, 0.0_f32);
        for (sum, &x) in self.sum.iter_mut().zip(row) {
            *sum += f64::from(x);
            square += f64::from(x) * f64::from(x);
            max = max.max(x.abs());
        }
        self.rows += 1;
        self.sum_norm += square.sqrt();
        self.sum_square += square;
        self.max_abs = self.max_abs.max(f64::from(max));
    }

    /// Adds the rows of another shard.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.sum_norm += other.sum_norm;
        self.sum_square += other.sum_square;
        self.max_abs = self.max_abs.max(other.max_abs);
        for (a, b) in self.sum.iter_mut().zip(&other.sum) {
            *a += b;
        }
    }

    /// Mean norm of a row.
    pub fn mean_norm(&self) -> f64 {
        self.sum_norm / self.rows.max(1) as f64
    }

    /// Root of the mean squared norm: rows divided by it have mean square norm 1.
    pub fn rms_norm(&self) -> f64 {
        (self.sum_square / self.rows.max(1) as f64).sqrt()
    }
}
