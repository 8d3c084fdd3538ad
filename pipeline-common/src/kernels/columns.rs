//! Sums over rows, in f64 and in a fixed order whatever the number of threads.

use rayon::prelude::*;

use super::vector::simd;

/// Rows summed by one task before the partial sums are added in order.
const BLOCK: usize = 512;

/// Σ over rows of `rows`, `[n, width]` row-major, as f64 `[width]`.
pub fn column_sums(rows: &[f32], width: usize) -> Vec<f64> {
    let partial = |block: &[f32]| {
        let mut sum = vec![0.0_f64; width];
        simd(
            #[inline(always)]
            || {
                for row in block.chunks_exact(width) {
                    for (sum, x) in sum.iter_mut().zip(row) {
                        *sum += f64::from(*x);
                    }
                }
            },
        );
        sum
    };
    in_order(rows.par_chunks(BLOCK * width).map(partial).collect(), width)
}

/// Σ over rows of `weights[row]` times the row of `rows`, `[n, width]` row-major, as f64 `[width]`.
pub fn weighted_sums(rows: &[f32], weights: &[f32], width: usize) -> Vec<f64> {
    let partial = |(block, weights): (&[f32], &[f32])| {
        let mut sum = vec![0.0_f64; width];
        let rows = block.chunks_exact(width).zip(weights);
        simd(
            #[inline(always)]
            || {
                for (row, weight) in rows.filter(|(_, weight)| **weight != 0.0) {
                    let weight = f64::from(*weight);
                    for (sum, x) in sum.iter_mut().zip(row) {
                        *sum += weight * f64::from(*x);
                    }
                }
            },
        );
        sum
    };
    let blocks = rows.par_chunks(BLOCK * width).zip(weights.par_chunks(BLOCK));
    let partials: Vec<_> = blocks.map(partial).collect();
    in_order(partials, width)
}

fn in_order(partials: Vec<Vec<f64>>, width: usize) -> Vec<f64> {
    let mut total = vec![0.0; width];
    for partial in partials {
        total.iter_mut().zip(partial).for_each(|(t, p)| *t += p);
    }
    total
}

/// Mean over rows of the squared distance from the mean row.
pub fn row_variance(rows: &[f32], width: usize) -> f64 {
    let n = (rows.len() / width) as f64;
    let mean: Vec<f64> = column_sums(rows, width).iter().map(|s| s / n).collect();
    let of_row =
        |row: &[f32]| row.iter().zip(&mean).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum::<f64>();
    rows.par_chunks(width).map(of_row).collect::<Vec<_>>().iter().sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_lose_small_terms() {
        let n = 1 << 16;
        let rows: Vec<f32> = (0..n * 2).map(|i| if i % 2 == 0 { 1.0 } else { 1e-4 }).collect();
        let sums = column_sums(&rows, 2);
        assert_eq!(sums[0], n as f64);
        assert!((sums[1] - n as f64 * f64::from(1e-4_f32)).abs() < 1e-9);
    }

    #[test]
    fn weights_are_those_of_rows() {
        let rows: Vec<f32> = (0..700 * 3).map(|i| (i as f32 * 0.3).sin()).collect();
        let weights: Vec<f32> = (0..700).map(|i| (i % 3) as f32).collect();
        let sums = weighted_sums(&rows, &weights, 3);
        for (c, sum) in sums.iter().enumerate() {
            let plain: f64 =
                (0..700).map(|r| f64::from(weights[r]) * f64::from(rows[r * 3 + c])).sum();
            assert!((sum - plain).abs() < 1e-9);
        }
    }
}
