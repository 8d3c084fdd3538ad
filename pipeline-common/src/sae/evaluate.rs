//! Figures of an SAE on given rows: error, unexplained variance, L0, firing counts.

use super::{Sae, history::Validation};
use crate::{kernels::columns::column_sums, shard::ShardSet};
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

/// Encodes and decodes `rows` of `set`, multiplied by `scale`.
pub fn evaluate(
    sae: &Sae,
    set: &ShardSet,
    rows: &[usize],
    scale: f32,
    threads: usize,
) -> Evaluation {
    let d_in = set.d_in();
    let (mut error, mut active) = (0.0, 0_usize);
    let (mut square, mut sum) = (0.0, vec![0.0; d_in]);
    let mut fired = vec![0_u64; sae.params.d_sae];
    for chunk in rows.chunks(CHUNK) {
        let mut x = vec![0.0; chunk.len() * d_in];
        x.par_chunks_mut(d_in).zip(chunk).for_each(|(out, row)| set.read_row(*row, scale, out));
        let latents = sae.encode(&x, threads);
        let mut difference = sae.decode(&latents);
        difference.par_iter_mut().zip(&x).for_each(|(y, x)| *y -= x);
        error += squared(&difference, d_in);
        square += squared(&x, d_in);
        sum.iter_mut().zip(column_sums(&x, d_in)).for_each(|(s, c)| *s += c);
        active += latents.active();
        for row in 0..chunk.len() {
            latents.row(row).0.iter().for_each(|l| fired[*l as usize] += 1);
        }
    }
    let n = rows.len().max(1) as f64;
    let variance = square / n - sum.iter().map(|s| (s / n).powi(2)).sum::<f64>();
    let figures = Validation {
        rows: rows.len() as u64,
        mse: error / n,
        fvu: error / n / variance.max(f64::MIN_POSITIVE),
        l0: active as f64 / n,
    };
    Evaluation { figures, fired }
}

fn squared(rows: &[f32], d_in: usize) -> f64 {
    let of_row = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    rows.par_chunks(d_in).map(of_row).collect::<Vec<_>>().iter().sum()
}
