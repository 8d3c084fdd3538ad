//! Gradients of both matrices, latent by latent.
//!
//! A latent's gradient is a sum of rows of a `[rows, width]` matrix, each with a factor. The rows
//! are many times larger than the second-level cache, so that they are taken 128 columns at
//! a time: those of all rows stay there while latent after latent reads them, and its sums stay in
//! registers.

use rayon::prelude::*;

use super::{
    super::{
        product::Write,
        vector::{axpy, simd},
    },
    ByLatent, group,
};

/// Columns of a tile: 8 vectors of 16.
const TILE: usize = 128;

/// A matrix, 128 columns at a time.
#[derive(Debug, Default)]
pub struct Tiles {
    rows: usize,
    width: usize,
    /// [tiles, rows, TILE], zeros beyond the width.
    data: Vec<f32>,
}

impl Tiles {
    /// Takes `matrix`, `[rows, width]`.
    pub fn load(&mut self, matrix: &[f32], width: usize) {
        self.rows = matrix.len() / width;
        self.width = width;
        self.data.resize(width.div_ceil(TILE) * self.rows * TILE, 0.0);
        let tiles = self.data.par_chunks_mut((self.rows * TILE).max(1)).enumerate();
        tiles.for_each(|(tile, data)| {
            let columns = tile * TILE..width.min((tile + 1) * TILE);
            let (data, _) = data.as_chunks_mut::<TILE>();
            for (out, row) in data.iter_mut().zip(matrix.chunks_exact(width)) {
                out[..columns.len()].copy_from_slice(&row[columns.clone()]);
                out[columns.len()..].fill(0.0);
            }
        });
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.width.div_ceil(TILE)
    }

    fn tile(&self, tile: usize) -> &[[f32; TILE]] {
        self.data[tile * self.rows * TILE..][..self.rows * TILE].as_chunks().0
    }
}

/// For each latent the sum over its active rows of a factor times a row of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct RowSums<'a> {
    /// Where latents are active.
    pub by_latent: &'a ByLatent,
    /// In the order of `by_latent`.
    pub factors: &'a [f32],
    /// `[rows, groups, width]`.
    pub matrix: &'a Tiles,
    /// The first latents of all groups but the first.
    pub ends: &'a [usize],
}

impl RowSums<'_> {
    /// Adds the columns of one tile to a latent's row, `[width]`, or puts them there.
    pub fn add(&self, latent: usize, tile: usize, out: &mut [f32], write: Write) {
        let begin = tile * TILE;
        let end = out.len().min(begin + TILE);
        let out = &mut out[begin..end];
        let group = group(self.ends, latent);
        let (groups, matrix) = (self.ends.len() + 1, self.matrix.tile(tile));
        let range = self.by_latent.range(latent);
        let entries = self.by_latent.of(latent).iter().zip(&self.factors[range]);
        simd(
            #[inline(always)]
            || {
                let mut sums = [0.0; TILE];
                for ((row, _), factor) in entries {
                    let row = &matrix[*row as usize * groups + group];
                    for i in 0..TILE {
                        sums[i] = factor.mul_add(row[i], sums[i]);
                    }
                }
                match write {
                    Write::Replace => out.copy_from_slice(&sums[..out.len()]),
                    Write::Add => axpy(1.0, &sums[..out.len()], out),
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::from_dense, *};

    #[test]
    fn sums_equal_the_dense_product() {
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let (rows, d_sae, ends) = (5, 11, [4]);
        let dense: Vec<f32> =
            (0..rows * d_sae).map(|i| if i % 3 == 0 { 1.0 + i as f32 } else { 0.0 }).collect();
        let active = from_dense(&dense, d_sae);
        let by_latent = active.by_latent(d_sae);
        let factors = by_latent.gather(&wave(active.active(), 0.3));
        let factor = |r: usize, l: usize| {
            let slot = active.row(r).0.iter().position(|i| *i as usize == l);
            slot.map_or(0.0, |i| ((active.slots(r).start + i) as f32 * 0.3).sin())
        };
        let mut tiles = Tiles::default();
        for width in [300, 64, 128] {
            let matrix = wave(rows * 2 * width, 0.7);
            tiles.load(&matrix, width);
            let sums =
                RowSums { by_latent: &by_latent, factors: &factors, matrix: &tiles, ends: &ends };
            for l in 0..d_sae {
                assert_eq!(by_latent.fires(l), (0..rows).any(|r| dense[r * d_sae + l] != 0.0));
                let mut out = vec![0.5; width];
                (0..tiles.count()).for_each(|tile| sums.add(l, tile, &mut out, Write::Add));
                let mut alone = vec![f32::NAN; width];
                (0..tiles.count()).for_each(|tile| sums.add(l, tile, &mut alone, Write::Replace));
                assert!(out.iter().zip(&alone).all(|(out, sum)| *out == 0.5 + sum));
                let group = usize::from(l >= 4);
                for (c, found) in out.iter().enumerate() {
                    let term = |r: usize| factor(r, l) * matrix[(2 * r + group) * width + c];
                    let want: f32 = (0..rows).map(term).sum();
                    assert!((found - 0.5 - want).abs() < 1e-5, "{l} {c}: {found} {want}");
                }
            }
        }
    }
}
