//! Sums over rows, document by document, and the figures that follow from them.

use std::ops::AddAssign;

use rayon::prelude::*;
use serde::Serialize;

use super::bootstrap;
use crate::sae::{evaluate::Part, history::unexplained, parameters::squared};

/// Decimal digits of a firing frequency in one bin of the histogram.
const BIN: f64 = 0.5;

/// Sums over the rows of a document, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Rows.
    pub rows: u64,
    /// Squared error.
    pub error: f64,
    /// Squared distance from the mean of all rows.
    pub distance: f64,
    /// Active latents.
    pub active: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.error += other.error;
        self.distance += other.distance;
        self.active += other.active;
    }
}

impl Sums {
    fn mse(&self) -> f64 {
        self.error / self.rows.max(1) as f64
    }

    fn fvu(&self) -> f64 {
        unexplained(self.error, self.distance)
    }

    fn l0(&self) -> f64 {
        self.active as f64 / self.rows.max(1) as f64
    }
}

/// What is counted while rows pass by.
#[derive(Debug)]
pub struct Tally {
    /// Mean of what is reconstructed, `[d_out]`.
    mean: Vec<f64>,
    documents: Vec<Sums>,
    /// Sum of all activations' magnitudes.
    l1: f64,
    /// Rows by their number of active latents.
    by_active: Vec<u64>,
    /// Rows in which each latent was active, `[d_sae]`.
    fired: Vec<u64>,
}

impl Tally {
    /// Nothing yet of `documents` documents, whose rows have this mean.
    pub fn new(mean: Vec<f64>, documents: usize, d_sae: usize) -> Self {
        Self {
            mean,
            documents: vec![Sums::default(); documents],
            l1: 0.0,
            by_active: vec![],
            fired: vec![0; d_sae],
        }
    }

    /// Counts rows; `document_of` has the document of each of all rows.
    pub fn add(&mut self, part: &Part<'_>, document_of: &[u32]) {
        let width = self.mean.len();
        let pairs = part.difference.par_chunks(width).zip(part.target.par_chunks(width));
        let squares: Vec<(f64, f64)> = pairs
            .map(|(difference, target)| (squared(difference), distance(target, &self.mean)))
            .collect();
        for (row, (error, distance)) in squares.into_iter().enumerate() {
            let (_, value) = part.latents.row(row);
            self.l1 += value.iter().map(|v| f64::from(v.abs())).sum::<f64>();
            if self.by_active.len() <= value.len() {
                self.by_active.resize(value.len() + 1, 0);
            }
            self.by_active[value.len()] += 1;
            let document = document_of[part.first + row] as usize;
            let active = value.len() as u64;
            self.documents[document] += Sums { rows: 1, error, distance, active };
        }
        part.count_fired(&mut self.fired);
    }

    /// The figures; `seed` decides the bootstrap.
    pub fn figures(&self, seed: u64) -> Figures {
        let mut all = Sums::default();
        self.documents.iter().for_each(|document| all += *document);
        let intervals = intervals(&self.documents, seed);
        let dead = self.fired.iter().filter(|n| **n == 0).count();
        Figures {
            rows: all.rows,
            documents: self.documents.len(),
            mse: all.mse(),
            fvu: all.fvu(),
            fvu_interval: intervals.map(|[fvu, _]| fvu),
            explained_variance: 1.0 - all.fvu(),
            l0: all.l0(),
            l0_interval: intervals.map(|[_, l0]| l0),
            l0_quantiles: self.l0_quantiles(all.rows),
            l1: self.l1 / all.rows.max(1) as f64,
            dead,
            dead_share: dead as f64 / self.fired.len().max(1) as f64,
            density: self.density(all.rows),
        }
    }

    fn l0_quantiles(&self, rows: u64) -> Quantiles {
        Quantiles::of(rows, |rank| {
            let mut left = rank + 1;
            let reached = self.by_active.iter().position(|n| {
                let here = *n >= left;
                left = left.saturating_sub(*n);
                here
            });
            reached.unwrap_or(0) as f64
        })
    }

    fn density(&self, rows: u64) -> Vec<Bin> {
        let place = |fired: u64| (-(fired as f64 / rows as f64).log10() / BIN).floor() as usize;
        let mut latents = vec![0; place(1) + 1];
        self.fired.iter().filter(|n| **n > 0).for_each(|n| latents[place(*n)] += 1);
        let bins = latents.into_iter().enumerate();
        // 0 and not -0 for the first.
        bins.map(|(i, latents)| Bin { log10_up_to: 0.0 - BIN * i as f64, latents }).collect()
    }
}

fn distance(row: &[f32], mean: &[f64]) -> f64 {
    row.iter().zip(mean).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum()
}

/// What is known of an SAE on rows; errors and activations are in the model's units.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Rows.
    pub rows: u64,
    /// Documents they belong to.
    pub documents: usize,
    /// Squared error of the reconstruction, summed over the width, mean over rows.
    pub mse: f64,
    /// Fraction of variance unexplained: the rows' squared errors over their squared distances
    /// from their mean, both summed.
    pub fvu: f64,
    /// 95 % interval of [`Self::fvu`]; none for a single document.
    pub fvu_interval: Option<[f64; 2]>,
    /// 1 - FVU.
    pub explained_variance: f64,
    /// Active latents a row, mean.
    pub l0: f64,
    /// 95 % interval of [`Self::l0`]; none for a single document.
    pub l0_interval: Option<[f64; 2]>,
    /// Active latents a row.
    pub l0_quantiles: Quantiles,
    /// Sum of the activations' magnitudes, mean over rows.
    pub l1: f64,
    /// Latents that were active in none of the rows.
    pub dead: usize,
    /// Their share.
    pub dead_share: f64,
    /// The other latents by the share of rows in which they were active, from 1 downwards.
    pub density: Vec<Bin>,
}

/// Latents of similar frequency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// log10 of the largest frequency in the bin; the next bin begins half a decade below.
    pub log10_up_to: f64,
    /// Latents in it.
    pub latents: u64,
}

/// Values that so many of the numbers do not exceed (nearest rank).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The smallest number.
    pub min: f64,
    /// 5 %.
    pub p05: f64,
    /// 25 %.
    pub p25: f64,
    /// 50 %.
    pub p50: f64,
    /// 75 %.
    pub p75: f64,
    /// 95 %.
    pub p95: f64,
    /// The largest number.
    pub max: f64,
}

impl Quantiles {
    /// Of `n` numbers of which `at` tells each by its rank, from 0.
    pub fn of(n: u64, at: impl Fn(u64) -> f64) -> Self {
        let quantile = |share: f64| at(rank(n, share));
        let [min, p05, p25, p50, p75, p95, max] =
            [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0].map(quantile);
        Self { min, p05, p25, p50, p75, p95, max }
    }
}

/// The rank, from 0, of the smallest of `n` numbers that `share` of them do not exceed.
pub(super) fn rank(n: u64, share: f64) -> u64 {
    ((share * n as f64).ceil() as u64).clamp(1, n.max(1)) - 1
}

/// 95 % intervals of [`Figures`]: FVU and L0.
fn intervals(documents: &[Sums], seed: u64) -> Option<[[f64; 2]; 2]> {
    bootstrap::intervals(documents, seed, |sums| [sums.fvu(), sums.l0()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numbers_that_occur() {
        let sorted: Vec<f64> = (1..=10).map(f64::from).collect();
        let q = Quantiles::of(10, |rank| sorted[rank as usize]);
        assert_eq!((q.min, q.p05, q.p25, q.p50), (1.0, 1.0, 3.0, 5.0));
        assert_eq!((q.p75, q.p95, q.max), (8.0, 10.0, 10.0));
        assert_eq!(Quantiles::of(1, |_| 7.0).p95, 7.0);
    }

    fn documents(n: usize) -> Vec<Sums> {
        let of = |i: usize| {
            let rows = 3 + (i % 5) as u64;
            let wave = |step: f64| 1.5 + (i as f64 * step).sin();
            let (error, distance) = (rows as f64 * wave(0.7), rows as f64 * 8.0 * wave(0.3));
            Sums { rows, error, distance, active: rows * (2 + (i % 3) as u64) }
        };
        (0..n).map(of).collect()
    }

    #[test]
    fn intervals_hold_the_estimate_and_shrink_with_documents() {
        let mut widths = vec![];
        for n in [20, 200, 2000] {
            let documents = documents(n);
            let mut all = Sums::default();
            documents.iter().for_each(|d| all += *d);
            let found = intervals(&documents, 3).unwrap();
            for (interval, estimate) in found.iter().zip([all.fvu(), all.l0()]) {
                assert!(interval[0] <= estimate && estimate <= interval[1], "{interval:?}");
            }
            widths.push(found.map(|[low, high]| high - low));
            assert_eq!(intervals(&documents, 3), Some(found));
            assert_ne!(intervals(&documents, 4), Some(found));
        }
        for figure in 0..2 {
            for pair in widths.windows(2) {
                // By the root of ten, within the noise of both.
                let ratio = pair[0][figure] / pair[1][figure];
                assert!((2.2..4.5).contains(&ratio), "{widths:?}");
            }
        }
        assert_eq!(intervals(&documents(1), 0), None);
    }
}
