//! Statistics of the stored rows, accumulated at capture.
//!
//! Sums are f64, taken in row order and within a row in a fixed number of lanes, so they depend
//! neither on threads nor on the processor.

use serde::{Deserialize, Serialize};

use crate::kernels::vector::simd;

/// Partial sums within a row: two AVX-512 registers of f64.
const LANES: usize = 16;

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
    /// Elements that did not fit f16 and were stored as its largest number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saturated: u64,
    /// Rows with such an element.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saturated_rows: u64,
    /// Sum of the rows, `[d_in]`; in the shard file, not in the manifest.
    #[serde(skip)]
    pub sum: Vec<f64>,
}

impl Stats {
    /// No rows yet, of width `d_in`.
    pub fn new(d_in: usize) -> Self {
        Self { sum: vec![0.0; d_in], ..Self::default() }
    }

    /// Adds rows, `[n, d_in]` row-major.
    pub fn add(&mut self, rows: &[f32]) {
        let Self { sum_norm, sum_square, max_abs, sum, .. } = self;
        for row in rows.chunks_exact(sum.len()) {
            let (square, max) = simd(
                #[inline(always)]
                || add_row(row, sum),
            );
            *sum_norm += square.sqrt();
            *sum_square += square;
            *max_abs = max_abs.max(f64::from(max));
        }
        self.rows += (rows.len() / self.sum.len()) as u64;
    }

    /// Adds the rows of another shard.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.sum_norm += other.sum_norm;
        self.sum_square += other.sum_square;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.saturated += other.saturated;
        self.saturated_rows += other.saturated_rows;
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

/// Adds a row to the sums; its squared norm and its largest magnitude.
#[inline(always)]
fn add_row(row: &[f32], sum: &mut [f64]) -> (f64, f32) {
    let (mut squares, mut largest) = ([0.0_f64; LANES], [0.0_f32; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    let (sums, sums_rest) = sum.as_chunks_mut::<LANES>();
    let mut lane = |i: usize, x: f32, sum: &mut f64| {
        let wide = f64::from(x);
        *sum += wide;
        squares[i] += wide * wide;
        largest[i] = if x.abs() > largest[i] { x.abs() } else { largest[i] };
    };
    for (chunk, sums) in chunks.iter().zip(sums) {
        for i in 0..LANES {
            lane(i, chunk[i], &mut sums[i]);
        }
    }
    for (i, (x, sum)) in rest.iter().zip(sums_rest).enumerate() {
        lane(i, *x, sum);
    }
    (squares.iter().sum(), largest.iter().fold(0.0, |a, b| a.max(*b)))
}

/// The Euclidean norm of a row.
pub fn norm(row: &[f32]) -> f64 {
    simd(
        #[inline(always)]
        || squared_norm(row),
    )
    .sqrt()
}

#[inline(always)]
fn squared_norm(row: &[f32]) -> f64 {
    let mut squares = [0.0_f64; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            squares[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
        }
    }
    for (square, x) in squares.iter_mut().zip(rest) {
        *square += f64::from(*x) * f64::from(*x);
    }
    squares.iter().sum()
}

/// For counts that are left out where there is nothing to count.
pub(crate) fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn statistics_are_those_of_the_plain_loop(
            d_in in 1_usize..70,
            values in prop::collection::vec(-100.0_f32..100.0, 210),
        ) {
            let rows: Vec<&[f32]> = values.chunks_exact(d_in).take(3).collect();
            let (mut stats, mut sum, mut max) = (Stats::new(d_in), vec![0.0; d_in], 0.0_f32);
            let mut squares = 0.0;
            for row in &rows {
                stats.add(row);
                row.iter().zip(&mut sum).for_each(|(x, s)| *s += f64::from(*x));
                let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                prop_assert!((norm(row) - square.sqrt()).abs() < 1e-9);
                squares += square;
                max = row.iter().fold(max, |m, x| m.max(x.abs()));
            }
            prop_assert_eq!(stats.sum.as_slice(), sum);
            prop_assert_eq!((stats.rows, stats.max_abs), (rows.len() as u64, f64::from(max)));
            prop_assert!((stats.sum_square - squares).abs() < 1e-9 * squares.max(1.0));
            let mut together = Stats::new(d_in);
            together.add(&rows.concat());
            prop_assert_eq!(together, stats);
        }
    }
}
