//! From rows to active latents, in blocks so that no `[rows, d_sae]` array exists.

use rayon::prelude::*;

use crate::kernels::{
    product::{Matrix, Write, product},
    sparse::{RowMut, SparseRows},
    topk::Candidates,
    vector::simd,
};

/// Pre-activations kept at a time, in elements: 16 MiB.
const BLOCK_ELEMENTS: usize = 4 << 20;

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

impl Encoder<'_> {
    /// Keeps each row's k largest pre-activations above `floor`; `input` is `[rows, d_in]`.
    pub fn top_k(
        &self,
        input: &[f32],
        k: usize,
        floor: f32,
        block: &mut Vec<f32>,
        out: &mut SparseRows,
    ) {
        out.reset(input.len() / self.d_in, k);
        self.blocks(input, block, out, |candidates, row, slots| {
            *slots.count = candidates.top_k(row, k, floor, |slot, latent, value| {
                slots.index[slot] = latent;
                slots.value[slot] = self.norms.map_or(value, |n| value / n[latent as usize]);
            }) as u32;
        });
    }

    /// Keeps every pre-activation above its latent's threshold.
    pub fn above(
        &self,
        input: &[f32],
        threshold: &[f32],
        block: &mut Vec<f32>,
        out: &mut SparseRows,
    ) {
        out.reset(input.len() / self.d_in, self.b_enc.len());
        self.blocks(input, block, out, |_, row, slots| {
            for (latent, (a, threshold)) in row.iter().zip(threshold).enumerate() {
                if a > threshold {
                    slots.index[*slots.count as usize] = latent as u32;
                    slots.value[*slots.count as usize] = *a;
                    *slots.count += 1;
                }
            }
        });
    }

    fn blocks(
        &self,
        input: &[f32],
        block: &mut Vec<f32>,
        out: &mut SparseRows,
        keep: impl Fn(&mut Candidates, &[f32], RowMut<'_>) + Sync,
    ) {
        let (d_in, d_sae) = (self.d_in, self.b_enc.len());
        let per_block = (BLOCK_ELEMENTS / d_sae).max(1);
        for (n, input) in input.chunks(per_block * d_in).enumerate() {
            let rows = input.len() / d_in;
            block.resize(rows * d_sae, 0.0);
            let weights = Matrix::new(self.w_enc, d_sae, d_in).t();
            product(Matrix::new(input, rows, d_in), weights, block, Write::Replace, self.threads);
            let slots = out.par_rows_mut(n * per_block);
            block.par_chunks_mut(d_sae).zip(slots).for_each_init(
                Candidates::default,
                |candidates, (row, slots)| {
                    simd(
                        #[inline(always)]
                        || {
                            row.iter_mut().zip(self.b_enc).for_each(|(a, b)| *a += b);
                            if let Some(norms) = self.norms {
                                row.iter_mut().zip(norms).for_each(|(a, n)| *a *= n);
                            }
                        },
                    );
                    keep(candidates, row, slots);
                },
            );
        }
    }
}
