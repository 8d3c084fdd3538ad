//! Rows with few active latents: storage, decoding, and gradients by latent.
//!
//! Decoding and the gradients of both matrices touch only the active latents of each row:
//! 2·active·d_in FLOP each, where a dense product would take 2·d_sae·d_in a row.

use rayon::prelude::*;

use super::vector::{axpy, dot, simd};

/// Active latents of `rows` rows, up to `k` each, in ascending order of latent.
#[derive(Clone, Debug, Default)]
pub struct SparseRows {
    k: usize,
    count: Vec<u32>,
    index: Vec<u32>,
    value: Vec<f32>,
}

/// One row's slots, to be filled.
#[derive(Debug)]
pub struct RowMut<'a> {
    /// Number of active latents.
    pub count: &'a mut u32,
    /// Their numbers, `[k]`.
    pub index: &'a mut [u32],
    /// Their activations, `[k]`.
    pub value: &'a mut [f32],
}

impl SparseRows {
    /// Empties it and makes room for `rows` rows of up to `k` latents.
    pub fn reset(&mut self, rows: usize, k: usize) {
        self.k = k;
        self.count.clear();
        self.count.resize(rows, 0);
        self.index.resize(rows * k, 0);
        self.value.resize(rows * k, 0.0);
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.count.len()
    }

    /// The active latents of a row and their activations.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let (begin, n) = (row * self.k, self.count[row] as usize);
        (&self.index[begin..begin + n], &self.value[begin..begin + n])
    }

    /// Renumbers the latents: `n` becomes `names[n]`; ascending stays ascending.
    pub fn rename(&mut self, names: &[usize]) {
        for row in 0..self.rows() {
            let begin = row * self.k;
            for index in &mut self.index[begin..begin + self.count[row] as usize] {
                *index = names[*index as usize] as u32;
            }
        }
    }

    /// Active entries of all rows.
    pub fn active(&self) -> usize {
        self.count.iter().map(|n| *n as usize).sum()
    }

    /// The slots of rows `begin..`, for filling in parallel.
    pub fn par_rows_mut(
        &mut self,
        begin: usize,
    ) -> impl IndexedParallelIterator<Item = RowMut<'_>> {
        let k = self.k.max(1);
        self.count[begin..]
            .par_iter_mut()
            .zip(self.index[begin * self.k..].par_chunks_mut(k))
            .zip(self.value[begin * self.k..].par_chunks_mut(k))
            .map(|((count, index), value)| RowMut { count, index, value })
    }

    /// Where each latent is active, by latent.
    pub fn by_latent(&self, d_sae: usize) -> ByLatent {
        let mut start = vec![0_u32; d_sae + 1];
        for row in 0..self.rows() {
            self.row(row).0.iter().for_each(|l| start[*l as usize + 1] += 1);
        }
        for l in 0..d_sae {
            start[l + 1] += start[l];
        }
        let mut next = start.clone();
        let mut slots = vec![(0, 0); start[d_sae] as usize];
        for row in 0..self.rows() {
            for (i, l) in self.row(row).0.iter().enumerate() {
                let at = &mut next[*l as usize];
                slots[*at as usize] = (row as u32, (row * self.k + i) as u32);
                *at += 1;
            }
        }
        ByLatent { start, slots }
    }
}

/// The (row, slot) pairs of each latent, rows ascending.
#[derive(Clone, Debug)]
pub struct ByLatent {
    start: Vec<u32>,
    slots: Vec<(u32, u32)>,
}

impl ByLatent {
    fn of(&self, latent: usize) -> &[(u32, u32)] {
        &self.slots[self.start[latent] as usize..self.start[latent + 1] as usize]
    }

    /// Whether the latent is active in any row.
    pub fn fires(&self, latent: usize) -> bool {
        self.start[latent] < self.start[latent + 1]
    }
}

/// `out[row] += Σ value · decoder[latent]`; `decoder` is `[d_sae, d_in]`, `out` is `[rows, d_in]`.
pub fn decode_add(active: &SparseRows, decoder: &[f32], d_in: usize, out: &mut [f32]) {
    out.par_chunks_mut(d_in).enumerate().for_each(|(row, out)| {
        simd(
            #[inline(always)]
            || {
                let (index, value) = active.row(row);
                for (l, v) in index.iter().zip(value) {
                    axpy(*v, &decoder[*l as usize * d_in..][..d_in], out);
                }
            },
        );
    });
}

/// The gradient of every active entry: `grad · decoder[latent]`, in the slots of `active`;
/// `grad` is the gradient of the reconstruction, `[rows, d_in]`.
pub fn entry_gradients(
    active: &SparseRows,
    decoder: &[f32],
    d_in: usize,
    grad: &[f32],
    out: &mut Vec<f32>,
) {
    out.resize(active.value.len(), 0.0);
    out.par_chunks_mut(active.k.max(1)).zip(grad.par_chunks(d_in)).enumerate().for_each(
        |(row, (out, grad))| {
            simd(
                #[inline(always)]
                || {
                    for (slot, l) in active.row(row).0.iter().enumerate() {
                        out[slot] = dot(grad, &decoder[*l as usize * d_in..][..d_in]);
                    }
                },
            );
        },
    );
}

/// What [`latent_gradients`] reads for one set of active latents.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The activations.
    pub active: &'a SparseRows,
    /// The same by latent.
    pub by_latent: &'a ByLatent,
    /// Gradient of the reconstruction, `[rows, d_in]`.
    pub grad: &'a [f32],
    /// Gradient of each active entry's pre-activation.
    pub entry_grad: &'a [f32],
    /// The encoder's input, `[rows, d_in]`.
    pub input: &'a [f32],
}

/// Adds latent `l`'s gradients: its decoder row, its encoder row and its encoder bias.
#[inline(always)]
pub fn latent_gradients(
    b: &Backward<'_>,
    latent: usize,
    dec: &mut [f32],
    enc: &mut [f32],
    bias: &mut f32,
) {
    let d_in = dec.len();
    for (row, slot) in b.by_latent.of(latent) {
        let (row, slot) = (*row as usize * d_in, *slot as usize);
        axpy(b.active.value[slot], &b.grad[row..row + d_in], dec);
        axpy(b.entry_grad[slot], &b.input[row..row + d_in], enc);
        *bias += b.entry_grad[slot];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn from_dense(dense: &[f32], d_sae: usize, k: usize) -> SparseRows {
        let mut rows = SparseRows::default();
        rows.reset(dense.len() / d_sae, k);
        for (slots, row) in
            rows.par_rows_mut(0).collect::<Vec<_>>().into_iter().zip(dense.chunks(d_sae))
        {
            for (l, v) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                slots.index[*slots.count as usize] = l as u32;
                slots.value[*slots.count as usize] = *v;
                *slots.count += 1;
            }
        }
        rows
    }

    #[test]
    fn everything_equals_the_dense_products() {
        let (rows, d_sae, d_in, k) = (5, 11, 37, 4);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let dense: Vec<f32> =
            (0..rows * d_sae).map(|i| if i % 3 == 0 { 1.0 + i as f32 } else { 0.0 }).collect();
        let active = from_dense(&dense, d_sae, k);
        let (decoder, grad, input) =
            (wave(d_sae * d_in, 0.3), wave(rows * d_in, 0.7), wave(rows * d_in, 1.1));
        let mut out = vec![0.5; rows * d_in];
        decode_add(&active, &decoder, d_in, &mut out);
        let mut entry_grad = vec![];
        entry_gradients(&active, &decoder, d_in, &grad, &mut entry_grad);
        let by_latent = active.by_latent(d_sae);
        let b = Backward {
            active: &active,
            by_latent: &by_latent,
            grad: &grad,
            entry_grad: &entry_grad,
            input: &input,
        };
        for r in 0..rows {
            for c in 0..d_in {
                let want: f32 =
                    (0..d_sae).map(|l| dense[r * d_sae + l] * decoder[l * d_in + c]).sum();
                assert!((out[r * d_in + c] - 0.5 - want).abs() < 1e-3);
            }
        }
        for l in 0..d_sae {
            let (mut dec, mut enc, mut bias) = (vec![0.0; d_in], vec![0.0; d_in], 0.0);
            latent_gradients(&b, l, &mut dec, &mut enc, &mut bias);
            let on = |r: &usize| dense[r * d_sae + l] != 0.0;
            let g = |r: usize| -> f32 {
                (0..d_in).map(|c| grad[r * d_in + c] * decoder[l * d_in + c]).sum()
            };
            let want_bias: f32 = (0..rows).filter(on).map(g).sum();
            assert!((bias - want_bias).abs() < 1e-4);
            assert_eq!(by_latent.fires(l), (0..rows).any(|r| on(&r)));
            for c in 0..d_in {
                let want: f32 = (0..rows).map(|r| dense[r * d_sae + l] * grad[r * d_in + c]).sum();
                assert!((dec[c] - want).abs() < 1e-3);
                let want: f32 = (0..rows).filter(on).map(|r| g(r) * input[r * d_in + c]).sum();
                assert!((enc[c] - want).abs() < 1e-3);
            }
        }
    }
}
