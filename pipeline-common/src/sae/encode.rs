//! From rows to active latents, in blocks so that no `[rows, d_sae]` array exists.

use rayon::prelude::*;

use super::Parameters;
use crate::kernels::{
    product::{Matrix, Write, product},
    sparse::{RowMut, SparseRows},
    topk::{Candidates, Largest},
    vector::simd,
};

/// Pre-activations kept at a time, in elements: 16 MiB.
const BLOCK_ELEMENTS: usize = 4 << 20;
/// The next batch's smallest activation is looked for from this share of the last one's.
const GUESS: f32 = 0.8;

/// What makes pre-activations, `input W_enc + b_enc`.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// `[d_sae, d_in]`.
    pub w_enc: &'a [f32],
    /// `[d_sae]`.
    pub b_enc: &'a [f32],
    /// Decoder norms to choose latents by, if not all one.
    pub norms: Option<&'a [f32]>,
    /// Width of the input.
    pub d_in: usize,
    /// Threads for the product.
    pub threads: usize,
}

/// A gated latent's magnitude, where its gate is open.
#[derive(Clone, Copy, Debug)]
pub struct Magnitude<'a> {
    /// Logarithm of the scale, `[d_sae]`.
    pub r_mag: &'a [f32],
    /// `[d_sae]`.
    pub b_mag: &'a [f32],
}

/// Working space from batch to batch; results do not depend on what is in it.
#[derive(Debug, Default)]
pub struct Scratch {
    block: Vec<f32>,
    largest: Largest,
    /// Where the last batch's smallest kept activation suggests to look from.
    guess: f32,
}

impl<'a> Encoder<'a> {
    /// An SAE's encoder, latents chosen by their activations.
    pub fn new(params: &'a Parameters, threads: usize) -> Self {
        let Parameters { w_enc, b_enc, d_in, .. } = params;
        Self { w_enc, b_enc, norms: None, d_in: *d_in, threads }
    }

    /// Keeps each row's k largest pre-activations above `floor`; `input` is `[rows, d_in]`.
    pub fn top_k(
        &self,
        input: &[f32],
        k: usize,
        floor: f32,
        scratch: &mut Scratch,
        out: &mut SparseRows,
    ) {
        out.reset(input.len() / self.d_in, k);
        self.blocks(input, &mut scratch.block, |first, block| {
            let rows = block.par_chunks_mut(self.b_enc.len()).zip(out.par_rows_mut(first));
            rows.for_each_init(Candidates::default, |candidates, (row, slots)| {
                self.shift(row);
                let RowMut { count, index, value } = slots;
                *count = candidates.top_k(row, k, floor, |slot, latent, a| {
                    index[slot] = latent;
                    value[slot] = self.norms.map_or(a, |n| a / n[latent as usize]);
                }) as u32;
            });
        });
    }

    /// Keeps the `k` largest positive pre-activations of all rows together (Bussmann et al. 2024).
    pub fn batch_top_k(
        &self,
        input: &[f32],
        k: usize,
        scratch: &mut Scratch,
        out: &mut SparseRows,
    ) {
        let d_sae = self.b_enc.len();
        let Scratch { block, largest, guess } = scratch;
        largest.begin(k, *guess);
        // A guess that was too high lost some: look again at all.
        for attempt in 0..2 {
            if attempt == 1 {
                if largest.is_sure() {
                    break;
                }
                largest.begin(k, 0.0);
            }
            self.blocks(input, block, |first, block| {
                let floor = largest.floor();
                let found: Vec<Vec<_>> = block
                    .par_chunks_mut(d_sae)
                    .enumerate()
                    .map(|(row, pre)| {
                        self.shift(pre);
                        Largest::above(pre, floor, first + row)
                    })
                    .collect();
                found.iter().for_each(|row| largest.add(row));
            });
        }
        *guess = GUESS
            * largest.rows(input.len() / self.d_in, |index, value| {
                if let Some(norms) = self.norms {
                    index.iter().zip(value.iter_mut()).for_each(|(l, v)| *v /= norms[*l as usize]);
                }
                out.push(index, value);
            });
    }

    /// Keeps every pre-activation above its latent's threshold.
    pub fn above(
        &self,
        input: &[f32],
        threshold: &[f32],
        scratch: &mut Scratch,
        out: &mut SparseRows,
    ) {
        self.collect(input, scratch, out, |row, index, value| {
            self.shift(row);
            for (latent, (a, threshold)) in row.iter().zip(threshold).enumerate() {
                if a > threshold {
                    index.push(latent as u32);
                    value.push(*a);
                }
            }
        });
    }

    /// The magnitudes of latents whose gate, the biased pre-activation, is open; those of 0 are
    /// left out.
    pub fn gated(
        &self,
        input: &[f32],
        magnitude: Magnitude<'_>,
        scratch: &mut Scratch,
        out: &mut SparseRows,
    ) {
        self.collect(input, scratch, out, |row, index, value| {
            for (latent, a) in row.iter().enumerate() {
                let size = a.mul_add(magnitude.r_mag[latent].exp(), magnitude.b_mag[latent]);
                if a + self.b_enc[latent] > 0.0 && size > 0.0 {
                    index.push(latent as u32);
                    value.push(size);
                }
            }
        });
    }

    /// Rows of which `keep` tells the active latents, ascending; it is given pre-activations
    /// without bias.
    fn collect(
        &self,
        input: &[f32],
        scratch: &mut Scratch,
        out: &mut SparseRows,
        keep: impl Fn(&mut [f32], &mut Vec<u32>, &mut Vec<f32>) + Sync,
    ) {
        out.clear();
        self.blocks(input, &mut scratch.block, |_, block| {
            let rows: Vec<_> = block
                .par_chunks_mut(self.b_enc.len())
                .map(|row| {
                    let (mut index, mut value) = (vec![], vec![]);
                    keep(row, &mut index, &mut value);
                    (index, value)
                })
                .collect();
            rows.iter().for_each(|(index, value)| out.push(index, value));
        });
    }

    /// Adds the biases; multiplies by the decoder's norms where latents are chosen by them.
    fn shift(&self, row: &mut [f32]) {
        simd(
            #[inline(always)]
            || {
                row.iter_mut().zip(self.b_enc).for_each(|(a, b)| *a += b);
                if let Some(norms) = self.norms {
                    row.iter_mut().zip(norms).for_each(|(a, n)| *a *= n);
                }
            },
        );
    }

    /// Calls `visit` with the number of a block's first row and its products, `[rows, d_sae]`.
    pub fn blocks(
        &self,
        input: &[f32],
        block: &mut Vec<f32>,
        mut visit: impl FnMut(usize, &mut Vec<f32>),
    ) {
        let (d_in, d_sae) = (self.d_in, self.b_enc.len());
        let per_block = (BLOCK_ELEMENTS / d_sae).max(1);
        for (n, input) in input.chunks(per_block * d_in).enumerate() {
            let rows = input.len() / d_in;
            block.resize(rows * d_sae, 0.0);
            let weights = Matrix::new(self.w_enc, d_sae, d_in).t();
            product(Matrix::new(input, rows, d_in), weights, block, Write::Replace, self.threads);
            visit(n * per_block, block);
        }
    }
}
