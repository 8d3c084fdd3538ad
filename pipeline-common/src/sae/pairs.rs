//! Products of all pairs of vectors, in tiles: the matrix of all of them is never whole in memory.

use candle_core::DType;
use rayon::prelude::*;

use super::parameters::squared;
use crate::kernels::{panels::Panels, product::Write};

/// Vectors compared at a time.
const BLOCK: usize = 1024;
/// With so many others at a time: 8 MiB of products.
const TILE: usize = 2048;

/// Vectors `[count, width]` that are made as they are needed.
pub struct Vectors<F> {
    /// How many there are.
    pub count: usize,
    /// How long each is.
    pub width: usize,
    /// Writes one of them.
    pub write: F,
}

/// The rows of `matrix`, `[n, width]`, at norm 1; those of zeros stay.
pub fn unit_rows(matrix: &[f32], width: usize) -> Vectors<impl Fn(usize, &mut [f32]) + Sync + '_> {
    let write = move |row: usize, out: &mut [f32]| {
        let row = &matrix[row * width..][..width];
        let norm = squared(row).sqrt();
        let unit = |x: &f32| if norm > 0.0 { (f64::from(*x) / norm) as f32 } else { *x };
        out.iter_mut().zip(row).for_each(|(out, x)| *out = unit(x));
    };
    Vectors { count: matrix.len() / width, width, write }
}

impl<F: Fn(usize, &mut [f32]) + Sync> Vectors<F> {
    /// Hands `visit` the products of each of `chosen` with all vectors, some at a time in order: the state
    /// of the chosen one, its number, the first of the others, and the products, to be used up.
    /// `advance` is told how many more of the chosen are done.
    ///
    /// # Errors
    /// The first error of `advance`.
    pub fn products<S: Send, E>(
        &self,
        (chosen, states): (&[usize], &mut [S]),
        visit: impl Fn(&mut S, usize, usize, &mut [f32]) + Sync,
        mut advance: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut panels = Panels::empty(DType::F32);
        let mut products = vec![];
        for (chosen, states) in chosen.chunks(BLOCK).zip(states.chunks_mut(BLOCK)) {
            let mine = self.gather(chosen.par_iter().copied());
            for first in (0..self.count).step_by(TILE) {
                let others = first..self.count.min(first + TILE);
                let n = others.len();
                let theirs = self.gather(others.into_par_iter());
                panels.fill(n, self.width, |i| &theirs[i * self.width..][..self.width]);
                products.resize(chosen.len() * n, 0.0);
                panels.product(&mine, &mut products, Write::Replace);
                let rows = products.par_chunks_mut(n).zip(chosen).zip(&mut *states);
                rows.for_each(|((row, latent), state)| visit(state, *latent, first, row));
            }
            advance(chosen.len())?;
        }
        Ok(())
    }

    fn gather(&self, chosen: impl IndexedParallelIterator<Item = usize>) -> Vec<f32> {
        let mut out = vec![0.0; chosen.len() * self.width];
        let each = out.par_chunks_mut(self.width).zip(chosen);
        each.for_each(|(out, i)| (self.write)(i, out));
        out
    }
}
