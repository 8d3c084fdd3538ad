//! Rows standardised one by one: what some SAEs do to their input before encoding.

use rayon::prelude::*;

/// `(x - μ) / (σ + eps)` before encoding and `y·(σ + restore_eps) + μ` after decoding, where μ is
/// the mean of the row and σ its standard deviation with `d_in - 1` degrees of freedom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNorm {
    /// Added to σ before dividing.
    pub eps: f32,
    /// Added to σ before multiplying.
    pub restore_eps: f32,
}

impl RowNorm {
    /// SAELens' `layer_norm`, and OpenAI's `LN`.
    pub const LAYER_NORM: Self = Self { eps: 1e-5, restore_eps: 0.0 };
    /// SAINT's, which multiplies by what it divided by.
    pub const SAINT: Self = Self { eps: 1e-6, restore_eps: 1e-6 };

    /// The standardised rows of `[n, d]`.
    pub fn apply(self, rows: &[f32], d: usize) -> Vec<f32> {
        let mut out = rows.to_vec();
        out.par_chunks_mut(d).for_each(|row| {
            let (mean, deviation) = moments(row);
            row.iter_mut().for_each(|x| *x = (*x - mean) / (deviation + self.eps));
        });
        out
    }

    /// Brings `out`, `[n, d]`, back to the mean and deviation of `rows`.
    pub fn restore(self, rows: &[f32], d: usize, out: &mut [f32]) {
        out.par_chunks_mut(d).zip(rows.par_chunks(d)).for_each(|(out, row)| {
            let (mean, deviation) = moments(row);
            out.iter_mut().for_each(|y| *y = *y * (deviation + self.restore_eps) + mean);
        });
    }

    /// What [`Self::restore`] multiplies by where `row` was standardised.
    pub fn spread(self, row: &[f32]) -> f32 {
        moments(row).1 + self.restore_eps
    }
}

/// Mean and standard deviation of a row.
fn moments(row: &[f32]) -> (f32, f32) {
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
    let square = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
    // One number alone deviates by nothing.
    let freedom = (row.len() - 1).max(1);
    (mean as f32, (square / freedom as f64).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The BatchTopK reference adds the standardised row where the mean belongs.
    #[test]
    fn trap_a_row_comes_back_with_its_mean_and_unbiased_deviation() {
        let rows = [1.0, 2.0, 3.0, 6.0, -50.0, 10.0, 0.0, 30.0];
        for norm in [RowNorm::LAYER_NORM, RowNorm::SAINT] {
            let mut out = norm.apply(&rows, 4);
            // The deviation of 1, 2, 3, 6 with 3 degrees of freedom is √(14/3).
            assert!((out[0] + 2.0 / (14.0_f32 / 3.0).sqrt()).abs() < 1e-5);
            assert!(moments(&out[4..]).0.abs() < 1e-6);
            norm.restore(&rows, 4, &mut out);
            out.iter().zip(rows).for_each(|(a, b)| assert!((a - b).abs() < 1e-3));
        }
        assert_eq!(RowNorm::SAINT.apply(&[7.0], 1), [0.0]);
    }
}
