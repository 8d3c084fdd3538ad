//! How an SAE's directions lie to each other: cosines and norms of its matrices' rows.

use rayon::prelude::*;
use serde::Serialize;

use super::figures::Quantiles;
use crate::{
    kernels::vector::{max, simd},
    sae::{
        Sae,
        pairs::unit_rows,
        parameters::squared,
        random::{Normal, Purpose},
    },
};

/// Latents compared with all others at most: their number times d_sae times d_out is the work.
pub const COMPARED: usize = 32_768;

/// Cosines above this are near-duplicates.
const ALIKE: f64 = 0.9;

/// Figures of the matrices alone, without rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Directions {
    /// Norms of decoder rows.
    pub decoder_norm: Spread,
    /// Norms of encoder rows.
    pub encoder_norm: Spread,
    /// Cosine between a latent's encoder and decoder row, mean; none where their widths differ.
    pub encoder_decoder_cosine: Option<f64>,
    /// Latents whose decoder rows were compared with those of all: every one, or a sample.
    pub compared: usize,
    /// Of each of them, the largest magnitude of a cosine with another latent's decoder row; none
    /// for a single latent.
    pub largest_cosine: Option<Cosines>,
}

/// Numbers from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosines {
    /// Mean.
    pub mean: f64,
    /// Quantiles.
    pub quantiles: Quantiles,
    /// Share above 0.9.
    pub share_above_0_9: f64,
}

/// Mean and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    fn of(numbers: &[f64]) -> Self {
        Self {
            mean: numbers.iter().sum::<f64>() / numbers.len().max(1) as f64,
            min: numbers.iter().copied().fold(f64::INFINITY, f64::min),
            max: numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// The latents to compare: all up to [`COMPARED`], else so many that `seed` chooses, ascending.
pub fn latents_to_compare(d_sae: usize, seed: u64) -> Vec<usize> {
    if d_sae <= COMPARED {
        return (0..d_sae).collect();
    }
    let mut chosen = Normal::new(seed, Purpose::Latents).choose(d_sae, COMPARED);
    chosen.sort_unstable();
    chosen
}

/// Compares the rows of `latents` with those of all; `advance` is told how many more are done.
///
/// # Errors
/// The first error of `advance`.
pub fn directions<E>(
    sae: &Sae,
    latents: &[usize],
    advance: impl FnMut(usize) -> Result<(), E>,
) -> Result<Directions, E> {
    let p = &sae.params;
    let largest = largest_cosines(&p.w_dec, p.d_out, latents, advance)?;
    let to_own = || {
        let paired = p.w_enc.par_chunks(p.d_in).zip(p.w_dec.par_chunks(p.d_out));
        Spread::of(&paired.map(|(e, d)| cosine(e, d)).collect::<Vec<_>>()).mean
    };
    Ok(Directions {
        decoder_norm: Spread::of(&norms(&p.w_dec, p.d_out)),
        encoder_norm: Spread::of(&norms(&p.w_enc, p.d_in)),
        encoder_decoder_cosine: (p.d_in == p.d_out).then(to_own),
        compared: latents.len(),
        largest_cosine: (p.d_sae > 1).then(|| summary(largest)),
    })
}

fn summary(mut cosines: Vec<f64>) -> Cosines {
    cosines.sort_unstable_by(f64::total_cmp);
    let n = cosines.len();
    Cosines {
        mean: cosines.iter().sum::<f64>() / n.max(1) as f64,
        quantiles: Quantiles::of(n as u64, |rank| cosines[rank as usize]),
        share_above_0_9: cosines.iter().filter(|c| **c > ALIKE).count() as f64 / n.max(1) as f64,
    }
}

/// max over j ≠ i of |cos(row i, row j)| for each i of `latents`, rows of `matrix`,
/// `[d_sae, width]`, in tiles of the matrix of all products, which is never whole in memory.
fn largest_cosines<E>(
    matrix: &[f32],
    width: usize,
    latents: &[usize],
    advance: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let mut largest = vec![0.0_f32; latents.len()];
    let visit = |largest: &mut f32, latent: usize, first: usize, row: &mut [f32]| {
        if let Some(own) = latent.checked_sub(first).and_then(|l| row.get_mut(l)) {
            *own = 0.0;
        }
        *largest = largest.max(largest_magnitude(row));
    };
    unit_rows(matrix, width).products((latents, &mut largest), visit, advance)?;
    // Rounding takes the cosine of equal directions above 1.
    Ok(largest.iter().map(|c| f64::from(c.min(1.0))).collect())
}

fn largest_magnitude(row: &mut [f32]) -> f32 {
    simd(
        #[inline(always)]
        || {
            for x in row.iter_mut() {
                *x = x.abs();
            }
            max(row)
        },
    )
}

fn norm(row: &[f32]) -> f64 {
    squared(row).sqrt()
}

fn norms(matrix: &[f32], width: usize) -> Vec<f64> {
    matrix.par_chunks(width).map(norm).collect()
}

/// 0 where either is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let size = norm(a) * norm(b);
    if size > 0.0 { dot / size } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::sae::{Activation, weights::tests::random_sae};

    fn found(sae: &Sae, latents: &[usize]) -> Directions {
        let mut done = 0;
        let Ok(found) = directions(sae, latents, |n| {
            done += n;
            Ok::<_, Infallible>(())
        });
        assert_eq!(done, latents.len());
        found
    }

    /// The plain loop in f64, over more latents than a block and a tile have.
    #[test]
    fn cosines_are_those_of_the_plain_loop() {
        let (d_in, d_sae) = (5, 4133);
        let mut sae = random_sae(d_in, d_sae, Activation::Relu);
        // A zero row, one twice as long, and an opposite pair.
        sae.params.w_dec[..d_in].fill(0.0);
        sae.params.w_dec[d_in..2 * d_in].iter_mut().for_each(|x| *x *= 2.0);
        let opposite: Vec<f32> = sae.params.w_dec[..3 * d_in][2 * d_in..].to_vec();
        let last = d_in * (d_sae - 1);
        sae.params.w_dec[last..].iter_mut().zip(opposite).for_each(|(x, y)| *x = -3.0 * y);
        let latents: Vec<usize> = (0..3).chain((3..d_sae).step_by(7)).chain([d_sae - 1]).collect();
        let row = |l: usize| &sae.params.w_dec[l * d_in..(l + 1) * d_in];
        let plain: Vec<f64> = latents
            .iter()
            .map(|i| {
                let others = (0..d_sae).filter(|j| j != i);
                others.map(|j| cosine(row(*i), row(j)).abs()).fold(0.0, f64::max)
            })
            .collect();
        let Ok(largest) =
            largest_cosines(&sae.params.w_dec, d_in, &latents, |_| Ok::<_, Infallible>(()));
        for (at, (a, b)) in largest.iter().zip(&plain).enumerate() {
            assert!((a - b).abs() < 1e-6, "latent {}: {a}, expected {b}", latents[at]);
        }
        assert_eq!((largest[0], plain[0]), (0.0, 0.0));
        assert!(largest[2] > 0.999_999 && largest[latents.len() - 1] > 0.999_999);

        let directions = found(&sae, &latents);
        let mean = plain.iter().sum::<f64>() / plain.len() as f64;
        let cosines = directions.largest_cosine.unwrap();
        assert!((cosines.mean - mean).abs() < 1e-6);
        let above = plain.iter().filter(|c| **c > 0.9).count() as f64 / plain.len() as f64;
        assert!((cosines.share_above_0_9 - above).abs() < 1e-3);
        assert_eq!((directions.decoder_norm.min, directions.compared), (0.0, latents.len()));
        assert!((directions.decoder_norm.max - 3.0).abs() < 1e-6);
    }

    #[test]
    fn encoder_and_decoder_are_compared_latent_by_latent() {
        let mut sae = random_sae(4, 6, Activation::Relu);
        sae.params.w_enc = sae.params.w_dec.iter().map(|x| -5.0 * x).collect();
        let all = latents_to_compare(6, 0);
        assert!((found(&sae, &all).encoder_decoder_cosine.unwrap() + 1.0).abs() < 1e-6);
        assert!((found(&sae, &all).encoder_norm.mean - 5.0).abs() < 1e-5);
    }

    #[test]
    fn a_single_latent_has_no_other() {
        let sae = random_sae(4, 1, Activation::Relu);
        assert_eq!(found(&sae, &[0]).largest_cosine, None);
    }

    #[test]
    fn very_many_latents_are_sampled() {
        assert_eq!(latents_to_compare(COMPARED, 0).len(), COMPARED);
        let sample = latents_to_compare(COMPARED * 2, 1);
        assert_eq!(sample.len(), COMPARED);
        assert!(sample.is_sorted_by(|a, b| a < b) && sample[COMPARED - 1] > COMPARED);
        assert_eq!(sample, latents_to_compare(COMPARED * 2, 1));
        assert_ne!(sample, latents_to_compare(COMPARED * 2, 2));
    }
}
