//! Intervals of figures that are made of sums over documents.

use std::ops::AddAssign;

use super::figures::rank;
use crate::sae::random::{Normal, Purpose};

/// Resamples.
const RESAMPLES: usize = 1000;

/// 95 % intervals of `figures` of the documents' sums; none for a single document.
///
/// Percentiles of the figures of documents drawn anew, with repetition, as many as there are
/// (Efron 1979): rows of a document are alike, so that rows drawn alone would promise too much.
pub fn intervals<S: Copy + Default + AddAssign, const N: usize>(
    documents: &[S],
    seed: u64,
    figures: impl Fn(&S) -> [f64; N],
) -> Option<[[f64; 2]; N]> {
    stratified(&[documents], seed, figures)
}

/// As [`intervals`], with as many documents of each stratum in every sample as there are; none if a stratum
/// has a single one.
pub fn stratified<S: Copy + Default + AddAssign, const N: usize>(
    strata: &[&[S]],
    seed: u64,
    figures: impl Fn(&S) -> [f64; N],
) -> Option<[[f64; 2]; N]> {
    if strata.iter().any(|documents| documents.len() < 2) {
        return None;
    }
    let mut normal = Normal::new(seed, Purpose::Bootstrap);
    let mut found: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut sums = S::default();
        for documents in strata {
            for _ in *documents {
                sums += documents[normal.below(documents.len())];
            }
        }
        found.iter_mut().zip(figures(&sums)).for_each(|(all, figure)| all.push(figure));
    }
    Some(found.map(middle))
}

/// Between what 95 % of the numbers lie.
fn middle(mut numbers: Vec<f64>) -> [f64; 2] {
    numbers.sort_unstable_by(f64::total_cmp);
    [0.025, 0.975].map(|share| numbers[rank(numbers.len() as u64, share) as usize])
}
