//! Figures of an SAE on given rows: error, unexplained variance, L0, firing counts.
//!
//! [`reconstruct`] is the loop over rows, for what looks closer too ([`super::evaluation`]).

use std::convert::Infallible;

use rayon::prelude::*;

use super::{
    Activation, Sae,
    history::{Validation, unexplained},
    rows::Rows,
};
use crate::kernels::{columns::column_sums, sparse::SparseRows};

/// Rows encoded at a time at most.
const CHUNK: usize = 2048;

/// Active latents kept at a time, in bytes, were all active that may be.
const CHUNK_BYTES: usize = 64 << 20;

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

/// Some of the rows and what an SAE makes of them.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The place of the first among all rows asked for.
    pub first: usize,
    /// What is reconstructed, `[rows, d_out]`, scaled.
    pub target: &'a [f32],
    /// The reconstruction less that.
    pub difference: &'a [f32],
    /// The active latents.
    pub latents: &'a SparseRows,
}

impl Part<'_> {
    /// Counts the rows in which each latent was active.
    pub fn count_fired(&self, fired: &mut [u64]) {
        for row in 0..self.latents.rows() {
            self.latents.row(row).0.iter().for_each(|l| fired[*l as usize] += 1);
        }
    }
}

/// Encodes and reconstructs the rows with these numbers, scaled as `rows` says, some at a time.
///
/// # Errors
/// The first error of `visit`.
pub fn reconstruct<E>(
    sae: &Sae,
    rows: &Rows,
    numbers: &[usize],
    mut visit: impl FnMut(&Part<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut encoder = sae.encoder();
    let (mut x, mut y) = (vec![], vec![]);
    let mut first = 0;
    for chunk in numbers.chunks(chunk_rows(sae)) {
        rows.input.gather(chunk, &mut x);
        rows.output().gather(chunk, &mut y);
        let latents = sae.encode_with(&mut encoder, &x);
        let mut difference = sae.reconstruct(&x, &latents);
        difference.par_iter_mut().zip(&y).for_each(|(out, y)| *out -= y);
        visit(&Part { first, target: &y, difference: &difference, latents: &latents })?;
        first += chunk.len();
    }
    Ok(())
}

/// Rows to encode together, so that memory stays bounded whatever the activation.
fn chunk_rows(sae: &Sae) -> usize {
    let active = match sae.activation {
        Activation::TopK { k } => k,
        Activation::JumpRelu | Activation::Relu | Activation::Gated => sae.params.d_sae,
    };
    (CHUNK_BYTES / (active * size_of::<(u32, f32)>()).max(1)).clamp(1, CHUNK)
}

/// Encodes and reconstructs the rows with these numbers, scaled as in training.
pub fn evaluate(sae: &Sae, rows: &Rows, numbers: &[usize]) -> Evaluation {
    let width = sae.params.d_out;
    let (mut error, mut active) = (0.0, 0_usize);
    let (mut square, mut sum) = (0.0, vec![0.0; width]);
    let mut fired = vec![0_u64; sae.params.d_sae];
    let Ok(()) = reconstruct(sae, rows, numbers, |part| {
        error += squared(part.difference, width);
        square += squared(part.target, width);
        sum.iter_mut().zip(column_sums(part.target, width)).for_each(|(s, c)| *s += c);
        active += part.latents.active();
        part.count_fired(&mut fired);
        Ok::<_, Infallible>(())
    });
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
