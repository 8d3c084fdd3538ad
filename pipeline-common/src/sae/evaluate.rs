//! Figures of an SAE on given rows: error, unexplained variance, L0, firing counts.

use super::{
    Sae,
    history::{Validation, unexplained},
    rows::Rows,
};
use crate::kernels::columns::column_sums;
use rayon::prelude::*;

/// Rows encoded at a time.
const CHUNK: usize = 2048;

/// What [`evaluate`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Error, variance, L0.
    pub figures: Validation,
    /// Rows in which each latent was active, `[d_sae]`.
    pub fired: Vec<u64>,
}

impl Evaluation {
    /// The share of rows in which each latent was active, `[d_sae]`.
    pub fn frequency(&self) -> Vec<f64> {
        self.fired.iter().map(|n| *n as f64 / self.figures.rows.max(1) as f64).collect()
    }
}

/// Encodes and reconstructs the rows with these numbers, scaled as in training.
pub fn evaluate(sae: &Sae, rows: &Rows, numbers: &[usize]) -> Evaluation {
    let mut encoder = sae.encoder();
    let width = sae.params.d_out;
    let (mut error, mut active) = (0.0, 0_usize);
    let (mut square, mut sum) = (0.0, vec![0.0; width]);
    let mut fired = vec![0_u64; sae.params.d_sae];
    let (mut x, mut y) = (vec![], vec![]);
    for chunk in numbers.chunks(CHUNK) {
        rows.input.gather(chunk, &mut x);
        rows.output().gather(chunk, &mut y);
        let latents = sae.encode_with(&mut encoder, &x);
        let mut difference = sae.reconstruct(&x, &latents);
        difference.par_iter_mut().zip(&y).for_each(|(out, y)| *out -= y);
        error += squared(&difference, width);
        square += squared(&y, width);
        sum.iter_mut().zip(column_sums(&y, width)).for_each(|(s, c)| *s += c);
        active += latents.active();
        for row in 0..chunk.len() {
            latents.row(row).0.iter().for_each(|l| fired[*l as usize] += 1);
        }
    }
    let n = numbers.len().max(1) as f64;
    let variance = square / n - sum.iter().map(|s| (s / n).powi(2)).sum::<f64>();
    let figures = Validation {
        rows: numbers.len() as u64,
        mse: error / n,
        fvu: unexplained(error / n, variance),
        l0: active as f64 / n,
    };
    Evaluation { figures, fired }
}

fn squared(rows: &[f32], d_in: usize) -> f64 {
    let of_row = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    rows.par_chunks(d_in).map(of_row).collect::<Vec<_>>().iter().sum()
}
