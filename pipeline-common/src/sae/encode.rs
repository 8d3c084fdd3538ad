//! From rows to active latents, in blocks so that no `[rows, d_sae]` array exists.

use rayon::prelude::*;

use candle_core::DType;

use super::rough::Rough;
use crate::kernels::{
    panels::{Panels, tile::COLUMNS},
    product::Write,
    sparse::{RowMut, SparseRows},
    topk::{Candidates, Largest},
    vector::simd,
};

/// Pre-activations kept at a time, in elements: 16 MiB.
pub(super) const BLOCK_ELEMENTS: usize = 4 << 20;
/// The same in bytes.
pub const BLOCK_BYTES: usize = BLOCK_ELEMENTS * size_of::<f32>();
/// Rows up to which the weights are read once as they are: laying them out would take as long as
/// the product.
const FEW: usize = 2 * COLUMNS;
/// The next batch's smallest activation is looked for from this share of the last one's.
const GUESS: f32 = 0.8;

/// What is added to a product before latents are chosen, and by what else they are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Shift<'a> {
    /// `[d_sae]`.
    pub b_enc: &'a [f32],
    /// Decoder norms to choose latents by, if not all one.
    pub norms: Option<&'a [f32]>,
}

/// A gated latent's magnitude, where its gate is open.
#[derive(Clone, Copy, Debug)]
pub struct Magnitude<'a> {
    /// Logarithm of the scale, `[d_sae]`.
    pub r_mag: &'a [f32],
    /// `[d_sae]`.
    pub b_mag: &'a [f32],
}

impl Magnitude<'_> {
    /// A latent's magnitude by its product with a row.
    pub fn of(&self, latent: usize, product: f32) -> f32 {
        product.mul_add(self.r_mag[latent].exp(), self.b_mag[latent])
    }
}

/// An encoder's weights as products read them, and working space; results depend on the weights
/// alone.
#[derive(Debug)]
pub struct Encoder {
    d_in: usize,
    d_sae: usize,
    panels: Panels,
    /// Few rows, and their products with all latents, `[rows, d_sae]`, if they are known.
    few: Panels,
    known: Option<Vec<f32>>,
    block: Vec<f32>,
    largest: Largest,
    /// Where the last batch's smallest kept activation suggests to look from.
    guess: f32,
    /// In place of the weights where it is enough to know which latents may be active.
    pub(super) rough: Option<Rough>,
}

impl Default for Encoder {
    fn default() -> Self {
        let [panels, few] = [(); 2].map(|()| Panels::empty(DType::F32));
        let largest = Largest::default();
        Self {
            d_in: 0,
            d_sae: 0,
            panels,
            few,
            known: None,
            block: vec![],
            largest,
            guess: 0.0,
            rough: None,
        }
    }
}

impl Encoder {
    /// Takes other weights, `[d_sae, d_in]`, to multiply in `precision`: F32 or BF16.
    pub fn load(&mut self, w_enc: &[f32], d_in: usize, precision: DType) {
        if self.panels.dtype() != precision {
            self.panels = Panels::empty(precision);
        }
        self.known = None;
        (self.d_in, self.d_sae) = (d_in, w_enc.len() / d_in);
        self.panels.fill(self.d_sae, d_in, |l| &w_enc[l * d_in..][..d_in]);
    }

    /// As [`Self::load`], to encode `input`, `[rows, d_in]`, and nothing else.
    pub fn load_for(&mut self, w_enc: &[f32], d_in: usize, precision: DType, input: &[f32]) {
        let rows = input.len() / d_in;
        if rows > FEW || precision != DType::F32 {
            return self.load(w_enc, d_in, precision);
        }
        let d_sae = w_enc.len() / d_in;
        (self.d_in, self.d_sae) = (d_in, d_sae);
        // The same chains of fused multiply-adds, with rows as the weight: the same bits.
        self.few.fill(rows, d_in, |row| &input[row * d_in..][..d_in]);
        self.block.resize(d_sae * rows, 0.0);
        self.few.product(w_enc, &mut self.block, Write::Replace);
        let mut products = self.known.take().unwrap_or_default();
        products.resize(rows * d_sae, 0.0);
        products.par_chunks_mut(d_sae.max(1)).enumerate().for_each(|(row, products)| {
            let column = self.block[row..].iter().step_by(rows);
            products.iter_mut().zip(column).for_each(|(product, x)| *product = *x);
        });
        self.known = Some(products);
    }

    /// Keeps each row's k largest pre-activations above `floor`; `input` is `[rows, d_in]`.
    pub fn top_k(
        &mut self,
        input: &[f32],
        shift: Shift<'_>,
        (k, floor): (usize, f32),
        out: &mut SparseRows,
    ) {
        out.reset(input.len() / self.d_in, k);
        self.blocks(input, |first, block| {
            let rows = block.par_chunks_mut(shift.b_enc.len()).zip(out.par_rows_mut(first));
            rows.for_each_init(Candidates::default, |candidates, (row, slots)| {
                shift.apply(row);
                let RowMut { count, index, value } = slots;
                *count = candidates.top_k(row, k, floor, |slot, latent, a| {
                    index[slot] = latent;
                    value[slot] = shift.norms.map_or(a, |n| a / n[latent as usize]);
                }) as u32;
            });
        });
    }

    /// Keeps the `k` largest positive pre-activations of all rows together (Bussmann et al. 2024).
    pub fn batch_top_k(&mut self, input: &[f32], shift: Shift<'_>, k: usize, out: &mut SparseRows) {
        let (d_sae, rows) = (shift.b_enc.len(), input.len() / self.d_in);
        let mut largest = std::mem::take(&mut self.largest);
        largest.begin(k, self.guess);
        // A guess that was too high lost some: look again at all.
        for attempt in 0..2 {
            if attempt == 1 {
                if largest.is_sure() {
                    break;
                }
                largest.begin(k, 0.0);
            }
            self.blocks(input, |first, block| {
                let floor = largest.floor();
                let found: Vec<Vec<_>> = block
                    .par_chunks_mut(d_sae)
                    .enumerate()
                    .map(|(row, pre)| {
                        shift.apply(pre);
                        Largest::above(pre, floor, first + row)
                    })
                    .collect();
                found.iter().for_each(|row| largest.add(row));
            });
        }
        self.guess = GUESS
            * largest.rows(rows, |index, value| {
                if let Some(norms) = shift.norms {
                    index.iter().zip(value.iter_mut()).for_each(|(l, v)| *v /= norms[*l as usize]);
                }
                out.push(index, value);
            });
        self.largest = largest;
    }

    /// Keeps every pre-activation above its latent's threshold.
    pub fn above(
        &mut self,
        input: &[f32],
        shift: Shift<'_>,
        threshold: &[f32],
        out: &mut SparseRows,
    ) {
        self.collect(input, out, |row, index, value| {
            shift.apply(row);
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
        &mut self,
        input: &[f32],
        b_gate: &[f32],
        magnitude: Magnitude<'_>,
        out: &mut SparseRows,
    ) {
        self.collect(input, out, |row, index, value| {
            for (latent, a) in row.iter().enumerate() {
                let size = magnitude.of(latent, *a);
                if a + b_gate[latent] > 0.0 && size > 0.0 {
                    index.push(latent as u32);
                    value.push(size);
                }
            }
        });
    }

    /// Rows of which `keep` tells the active latents, ascending; it is given pre-activations
    /// without bias.
    fn collect(
        &mut self,
        input: &[f32],
        out: &mut SparseRows,
        keep: impl Fn(&mut [f32], &mut Vec<u32>, &mut Vec<f32>) + Sync,
    ) {
        out.clear();
        let d_sae = self.d_sae;
        self.blocks(input, |_, block| {
            let rows: Vec<_> = block
                .par_chunks_mut(d_sae)
                .map(|row| {
                    let (mut index, mut value) = (vec![], vec![]);
                    keep(row, &mut index, &mut value);
                    (index, value)
                })
                .collect();
            rows.iter().for_each(|(index, value)| out.push(index, value));
        });
    }

    /// Calls `visit` with the number of a block's first row and its products, `[rows, d_sae]`.
    pub fn blocks(&mut self, input: &[f32], mut visit: impl FnMut(usize, &mut Vec<f32>)) {
        let Self { d_in, d_sae, ref panels, ref known, ref mut block, .. } = *self;
        if let Some(known) = known {
            block.clone_from(known);
            return visit(0, block);
        }
        let per_block = (BLOCK_ELEMENTS / d_sae).max(1);
        for (n, input) in input.chunks(per_block * d_in).enumerate() {
            block.resize(input.len() / d_in * d_sae, 0.0);
            panels.product(input, block, Write::Replace);
            visit(n * per_block, block);
        }
    }
}

impl Shift<'_> {
    /// Adds the biases; multiplies by the decoder's norms where latents are chosen by them.
    fn apply(&self, row: &mut [f32]) {
        simd(
            #[inline(always)]
            || {
                for (a, b) in row.iter_mut().zip(self.b_enc) {
                    *a += b;
                }
                if let Some(norms) = self.norms {
                    for (a, n) in row.iter_mut().zip(norms) {
                        *a *= n;
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_give_the_bits_of_many() {
        let (d_in, d_sae) = (70, 301);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let weights = wave(d_sae * d_in, 0.7);
        for rows in [1, 32, FEW, FEW + 1] {
            let input = wave(rows * d_in, 0.3);
            let (mut few, mut many) = (Encoder::default(), Encoder::default());
            few.load_for(&weights, d_in, DType::F32, &input);
            many.load(&weights, d_in, DType::F32);
            let [mut found, mut expected] = [vec![], vec![]];
            for _ in 0..2 {
                found.clear();
                few.blocks(&input, |_, block| {
                    found.append(&mut block.clone());
                    block.fill(f32::NAN);
                });
            }
            many.blocks(&input, |_, block| expected.append(block));
            assert_eq!(found, expected, "{rows} rows");
            // Another step with many rows forgets what was known.
            few.load_for(&weights, d_in, DType::BF16, &input);
            assert!(few.known.is_none());
        }
    }
}
