//! Rows with few active latents: storage, decoding, and gradients by latent.
//!
//! Decoding and the gradients of both matrices touch only the active latents of each row:
//! 2·active·d_in FLOP each, where a dense product would take 2·d_sae·d_in a row. What limits them
//! is how often a matrix is read from main memory, not arithmetic.

use std::ops::Range;

use rayon::prelude::*;

pub mod gradients;
pub mod reconstruct;

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

    /// The activation in every slot.
    pub fn values(&self) -> &[f32] {
        &self.value
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
    fn cut<'a>(&self, slots: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        cut(slots, self.start.windows(2).map(|row| row[1] - row[0]))
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
        &self.slots[self.range(latent)]
    }

    /// The places of a latent's pairs among those of all latents.
    #[inline(always)]
    pub fn range(&self, latent: usize) -> Range<usize> {
        self.start[latent] as usize..self.start[latent + 1] as usize
    }

    /// A number for every slot, in the order of the pairs.
    pub fn gather(&self, slots: &[f32]) -> Vec<f32> {
        self.slots.par_iter().map(|(_, slot)| slots[*slot as usize]).collect()
    }

    /// A number for every pair, cut into latents.
    pub fn cut<'a>(&self, pairs: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        cut(pairs, self.start.windows(2).map(|latent| (latent[1] - latent[0]) as usize))
    }

    /// Whether the latent is active in any row.
    pub fn fires(&self, latent: usize) -> bool {
        self.start[latent] < self.start[latent + 1]
    }
}

/// Parts of the given lengths, one after the other.
fn cut(mut all: &mut [f32], lengths: impl ExactSizeIterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut parts = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (head, tail) = all.split_at_mut(length);
        parts.push(head);
        all = tail;
    }
    parts
}

/// The group of a latent, where those from each of `ends` on belong to the next one.
#[inline(always)]
fn group(ends: &[usize], latent: usize) -> usize {
    ends.iter().take_while(|end| **end <= latent).count()
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
}
