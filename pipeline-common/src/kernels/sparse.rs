//! Rows with few active latents: storage, decoding, and gradients by latent.
//!
//! Decoding and the gradients of both matrices touch only the active latents of each row:
//! 2·active·d_in FLOP each, where a dense product would take 2·d_sae·d_in a row.

use std::ops::Range;

use rayon::prelude::*;

use super::vector::{axpy, dot, simd};

/// Active latents of some rows, in ascending order of latent.
#[derive(Clone, Debug, Default)]
pub struct SparseRows {
    /// First slot of each row, and the number of slots.
    start: Vec<usize>,
    count: Vec<u32>,
    index: Vec<u32>,
    value: Vec<f32>,
}

/// One row's slots, to be filled.
#[derive(Debug)]
pub struct RowMut<'a> {
    /// Number of active latents.
    pub count: &'a mut u32,
    /// Their numbers.
    pub index: &'a mut [u32],
    /// Their activations.
    pub value: &'a mut [f32],
}

impl SparseRows {
    /// Empties it.
    pub fn clear(&mut self) {
        self.start.clear();
        self.start.push(0);
        self.count.clear();
        self.index.clear();
        self.value.clear();
    }

    /// Empties it and makes room for `rows` rows of up to `k` latents, all without any.
    pub fn reset(&mut self, rows: usize, k: usize) {
        self.start.clear();
        self.start.extend((0..=rows).map(|row| row * k));
        self.count.clear();
        self.count.resize(rows, 0);
        self.index.resize(rows * k, 0);
        self.value.resize(rows * k, 0.0);
    }

    /// Adds a row with these latents, ascending, and their activations; only after [`Self::clear`].
    pub fn push(&mut self, index: &[u32], value: &[f32]) {
        self.index.extend_from_slice(index);
        self.value.extend_from_slice(value);
        self.count.push(index.len() as u32);
        self.start.push(self.index.len());
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.count.len()
    }

    /// The active latents of a row and their activations.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let slots = self.slots(row);
        (&self.index[slots.clone()], &self.value[slots])
    }

    /// The activation in a slot.
    #[inline(always)]
    pub fn value(&self, slot: usize) -> f32 {
        self.value[slot]
    }

    /// The filled slots of a row.
    pub fn slots(&self, row: usize) -> Range<usize> {
        let begin = self.start[row];
        begin..begin + self.count[row] as usize
    }

    /// Renumbers the latents: `n` becomes `names[n]`; ascending stays ascending.
    pub fn rename(&mut self, names: &[usize]) {
        for row in 0..self.rows() {
            let slots = self.slots(row);
            self.index[slots].iter_mut().for_each(|i| *i = names[*i as usize] as u32);
        }
    }

    /// Active entries of all rows.
    pub fn active(&self) -> usize {
        self.count.iter().map(|n| *n as usize).sum()
    }

    /// Mean over the rows of the sum of activations.
    pub fn mean_sum(&self) -> f64 {
        let of_row = |row| f64::from(self.row(row).1.iter().sum::<f32>());
        (0..self.rows()).map(of_row).sum::<f64>() / self.rows().max(1) as f64
    }

    /// The slots of rows `begin..`, for filling in parallel; only after [`Self::reset`].
    pub fn par_rows_mut(
        &mut self,
        begin: usize,
    ) -> impl IndexedParallelIterator<Item = RowMut<'_>> {
        let k = self.start.get(1).copied().unwrap_or(0).max(1);
        self.count[begin..]
            .par_iter_mut()
            .zip(self.index[begin * k..].par_chunks_mut(k))
            .zip(self.value[begin * k..].par_chunks_mut(k))
            .map(|((count, index), value)| RowMut { count, index, value })
    }

    /// A number for every slot, cut into rows.
    fn cut<'a>(&self, mut slots: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        let mut rows = Vec::with_capacity(self.rows());
        for row in 0..self.rows() {
            let (head, tail) = slots.split_at_mut(self.start[row + 1] - self.start[row]);
            rows.push(head);
            slots = tail;
        }
        rows
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
                slots[*at as usize] = (row as u32, (self.start[row] + i) as u32);
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
    /// The rows in which a latent is active, ascending, and the slots there.
    #[inline(always)]
    pub fn of(&self, latent: usize) -> &[(u32, u32)] {
        &self.slots[self.start[latent] as usize..self.start[latent + 1] as usize]
    }

    /// Whether the latent is active in any row.
    pub fn fires(&self, latent: usize) -> bool {
        self.start[latent] < self.start[latent + 1]
    }
}

/// Gradients of reconstructions, `[rows, d_out]` each: that of latents up to `ends[0]`, of those
/// from there up to `ends[1]`, ..., of all others.
#[derive(Clone, Copy, Debug)]
pub struct OutputGrads<'a> {
    /// Ascending; one fewer than `grads`.
    pub ends: &'a [usize],
    /// The gradients.
    pub grads: &'a [Vec<f32>],
}

impl<'a> OutputGrads<'a> {
    #[inline(always)]
    fn of(&self, latent: usize) -> &'a [f32] {
        &self.grads[self.ends.iter().take_while(|end| **end <= latent).count()]
    }
}

/// `out[row] += Σ value · decoder[latent]` over the active ones of `latents`; `decoder` is
/// `[d_sae, d_out]`, `out` is `[rows, d_out]`.
pub fn decode_add(
    active: &SparseRows,
    latents: Range<usize>,
    decoder: &[f32],
    d_out: usize,
    out: &mut [f32],
) {
    out.par_chunks_mut(d_out).enumerate().for_each(|(row, out)| {
        simd(
            #[inline(always)]
            || {
                let (index, value) = active.row(row);
                for (l, v) in index.iter().zip(value) {
                    if latents.contains(&(*l as usize)) {
                        axpy(*v, &decoder[*l as usize * d_out..][..d_out], out);
                    }
                }
            },
        );
    });
}

/// The gradient of every active entry, `grad · decoder[latent]`, in the slots of `active`.
pub fn entry_gradients(
    active: &SparseRows,
    decoder: &[f32],
    d_out: usize,
    grad: OutputGrads<'_>,
    out: &mut Vec<f32>,
) {
    out.resize(active.value.len(), 0.0);
    active.cut(out).into_par_iter().enumerate().for_each(|(row, out)| {
        simd(
            #[inline(always)]
            || {
                for (out, l) in out.iter_mut().zip(active.row(row).0) {
                    let latent = *l as usize;
                    let grad = &grad.of(latent)[row * d_out..][..d_out];
                    *out = dot(grad, &decoder[latent * d_out..][..d_out]);
                }
            },
        );
    });
}

/// What [`latent_gradients`] reads for one set of active latents.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The activations.
    pub active: &'a SparseRows,
    /// The same by latent.
    pub by_latent: &'a ByLatent,
    /// Gradients of the reconstruction.
    pub grad: OutputGrads<'a>,
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
    let (d_out, d_in, grad) = (dec.len(), enc.len(), b.grad.of(latent));
    for (row, slot) in b.by_latent.of(latent) {
        let (row, slot) = (*row as usize, *slot as usize);
        axpy(b.active.value[slot], &grad[row * d_out..][..d_out], dec);
        axpy(b.entry_grad[slot], &b.input[row * d_in..][..d_in], enc);
        *bias += b.entry_grad[slot];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn from_dense(dense: &[f32], d_sae: usize) -> SparseRows {
        let mut rows = SparseRows::default();
        rows.clear();
        for row in dense.chunks(d_sae) {
            let on = row.iter().enumerate().filter(|(_, v)| **v != 0.0);
            let (index, value): (Vec<u32>, Vec<f32>) = on.map(|(l, v)| (l as u32, *v)).unzip();
            rows.push(&index, &value);
        }
        rows
    }

    #[test]
    fn everything_equals_the_dense_products() {
        let (rows, d_sae, d_in) = (5, 11, 37);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let dense: Vec<f32> =
            (0..rows * d_sae).map(|i| if i % 3 == 0 { 1.0 + i as f32 } else { 0.0 }).collect();
        let active = from_dense(&dense, d_sae);
        let (decoder, grad, input) =
            (wave(d_sae * d_in, 0.3), wave(rows * d_in, 0.7), wave(rows * d_in, 1.1));
        let mut out = vec![0.5; rows * d_in];
        decode_add(&active, 0..d_sae, &decoder, d_in, &mut out);
        let mut entry_grad = vec![];
        let grads = [grad.clone()];
        let output = OutputGrads { ends: &[], grads: &grads };
        entry_gradients(&active, &decoder, d_in, output, &mut entry_grad);
        let by_latent = active.by_latent(d_sae);
        let b = Backward {
            active: &active,
            by_latent: &by_latent,
            grad: output,
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
