//! Active latents by a product in bf16 that tells which ones they may be, and exact sums of those alone.
//!
//! Processors that multiply pairs of bf16 do so twice as fast as f32. How far a rounded product may be off
//! is bounded, row by row, by Cauchy and Schwarz: with x' and w' for what bf16 makes of x and w,
//! `|x'w' - xw| ≤ ‖x'‖ ‖w' - w‖ + ‖x' - x‖ ‖w‖`. Latents that the bound cannot rule out get the chain of fused
//! multiply-adds that the product in f32 has, so that the result is that of f32, bit for bit.

use candle_core::DType;
use rayon::prelude::*;

use super::encode::BLOCK_ELEMENTS;
use crate::kernels::{
    panels::{Panels, round, tile},
    product::Write,
    sparse::{RowMut, SparseRows},
    topk::Candidates,
    vector::{chains, simd},
};

/// Of the numbers that `f32` has none in between.
const UNIT: f64 = 1.0 / (1 << 24) as f64;
/// What products lose that are too small for normal numbers, and more.
const TINY: f64 = 1e-30;
/// The share of latents that may be active in a row; with more the exact sums take the time that is won.
const ACTIVE: usize = 64;

/// An encoder's weights in bf16, and what they have lost.
#[derive(Debug)]
pub(super) struct Rough {
    d_in: usize,
    panels: Panels,
    /// The largest norm of a latent's weights, and of what rounding took from them.
    norm: f64,
    lost: f64,
    block: Vec<f32>,
}

/// The weights as they are.
#[derive(Clone, Copy)]
pub(super) struct Exact<'a> {
    /// `[d_sae, d_in]`.
    pub w_enc: &'a [f32],
    /// `[d_sae]`.
    pub b_enc: &'a [f32],
}

impl Exact<'_> {
    /// Pre-activations of some latents: their numbers and places for the values.
    #[inline(always)]
    fn fill(&self, x: &[f32], latents: &mut [(f32, u32)]) {
        const CHAINS: usize = 8;
        for latents in latents.chunks_mut(CHAINS) {
            let last = latents.len() - 1;
            let row = |i: usize| latents[i.min(last)].1 as usize;
            let rows = std::array::from_fn(|i| &self.w_enc[row(i) * x.len()..][..x.len()]);
            let sums: [f32; CHAINS] = chains(x, rows);
            for ((value, latent), sum) in latents.iter_mut().zip(sums) {
                *value = sum + self.b_enc[*latent as usize];
            }
        }
    }
}

impl Rough {
    /// Whether `active` of `d_sae` latents are found faster this way.
    pub fn pays(active: usize, d_sae: usize) -> bool {
        tile::has_fast_dot() && active * ACTIVE <= d_sae
    }

    /// Lays out weights, `[d_sae, d_in]`.
    pub fn new(w_enc: &[f32], d_in: usize) -> Self {
        let rows = w_enc.par_chunks_exact(d_in);
        let norms = rows.map(norms).reduce(
            || [0.0; 3],
            |a, b| {
                // `max` would pass over what is not a number.
                std::array::from_fn(|i| if b[i] <= a[i] { a[i] } else { b[i] })
            },
        );
        let panels =
            Panels::new(w_enc.len() / d_in, d_in, DType::BF16, |l| &w_enc[l * d_in..][..d_in]);
        let [norm, _, lost] = norms.map(f64::sqrt);
        Self { d_in, panels, norm, lost, block: vec![] }
    }

    /// As [`Encoder::top_k`](super::encode::Encoder::top_k).
    pub fn top_k(
        &mut self,
        exact: Exact<'_>,
        input: &[f32],
        (k, floor): (usize, f32),
        out: &mut SparseRows,
    ) {
        let (d_in, d_sae) = (self.d_in, exact.b_enc.len());
        out.reset(input.len() / d_in, k);
        let largest_bias = exact.b_enc.iter().map(|b| f64::from(b.abs())).fold(0.0, f64::max);
        let per_block = (BLOCK_ELEMENTS / d_sae).max(1);
        let mut block = std::mem::take(&mut self.block);
        block.resize(per_block.min(input.len() / d_in) * d_sae, 0.0);
        for (n, input) in input.chunks(per_block * d_in).enumerate() {
            let block = &mut block[..input.len() / d_in * d_sae];
            self.panels.product(input, block, Write::Replace);
            let rows = input.par_chunks(d_in).zip(block.par_chunks_mut(d_sae));
            let rows = rows.zip(out.par_rows_mut(n * per_block));
            rows.for_each_init(Candidates::default, |candidates, ((x, pre), slots)| {
                let RowMut { count, index, value } = slots;
                let keep = |slot: usize, latent, a| {
                    index[slot] = latent;
                    value[slot] = a;
                };
                let slack = self.slack(x, largest_bias);
                simd(
                    #[inline(always)]
                    || {
                        pre.iter_mut().zip(exact.b_enc).for_each(|(a, b)| *a += b);
                        exact.fill(x, candidates.near_top_k(pre, k, (floor, slack)));
                    },
                );
                *count = candidates.largest(k, floor, keep) as u32;
            });
        }
        self.block = block;
    }

    /// How far a row's pre-activations may be off; not finite where nothing is known.
    fn slack(&self, x: &[f32], largest_bias: f64) -> f32 {
        let [whole, kept, lost] = norms(x).map(f64::sqrt);
        let rounding = kept * self.lost + lost * self.norm;
        // Two chains of d_in sums each, and the bias.
        let size = whole * self.norm * 1.02;
        let sums = 2.0 * self.d_in as f64 * UNIT * size + 4.0 * UNIT * (size + largest_bias);
        (1.0001 * (rounding + sums) + TINY) as f32
    }
}

/// Squared norms of a row, of what bf16 makes of it, and of the difference.
fn norms(x: &[f32]) -> [f64; 3] {
    const LANES: usize = 8;
    let mut sums = [[0.0_f64; LANES]; 3];
    simd(
        #[inline(always)]
        || {
            for x in x.chunks(LANES) {
                for (lane, x) in x.iter().enumerate() {
                    let rounded = round(*x);
                    for (sums, part) in sums.iter_mut().zip([*x, rounded, x - rounded]) {
                        let part = f64::from(part);
                        sums[lane] = part.mul_add(part, sums[lane]);
                    }
                }
            }
        },
    );
    sums.map(|lanes| lanes.iter().sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sae::{
        encode::{Encoder, Shift},
        random::{Normal, Purpose},
    };

    fn found(
        (d_in, k): (usize, usize),
        (w_enc, b_enc): (&[f32], &[f32]),
        input: &[f32],
    ) -> [SparseRows; 2] {
        let [mut expected, mut rough] = [(); 2].map(|()| SparseRows::default());
        let mut encoder = Encoder::default();
        encoder.load(w_enc, d_in, DType::F32);
        encoder.top_k(input, Shift { b_enc, norms: None }, (k, 0.0), &mut expected);
        let exact = Exact { w_enc, b_enc };
        Rough::new(w_enc, d_in).top_k(exact, input, (k, 0.0), &mut rough);
        [expected, rough]
    }

    fn assert_same([expected, rough]: &[SparseRows; 2]) {
        assert_eq!(expected.rows(), rough.rows());
        for row in 0..expected.rows() {
            let bits = |rows: &SparseRows| {
                let (index, value) = rows.row(row);
                (index.to_vec(), value.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            };
            assert_eq!(bits(rough), bits(expected), "row {row}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn latents_are_those_of_f32_bit_for_bit(
            seed: u64, d_in in 1_usize..70, d_sae in 1_usize..400, k in 0_usize..40, scale in -20_i32..20,
        ) {
            let mut normal = Normal::new(seed, Purpose::Encoder);
            let [mut w, mut b, mut x] = [d_sae * d_in, d_sae, 30 * d_in].map(|n| vec![0.0; n]);
            [&mut w, &mut b, &mut x].into_iter().for_each(|t| normal.fill(t));
            x.iter_mut().for_each(|x| *x *= 2_f32.powi(scale));
            // Equal latents, and some that differ by less than bf16 tells apart.
            for l in (1..d_sae).step_by(3) {
                let (before, own) = w.split_at_mut(l * d_in);
                own[..d_in].copy_from_slice(&before[(l - 1) * d_in..]);
                own[0] *= 1.0 + (l % 2) as f32 * 1e-6;
            }
            assert_same(&found((d_in, k), (&w, &b), &x));
        }
    }

    #[test]
    fn numbers_beyond_bf16_and_those_that_are_none_change_nothing() {
        let (d_in, d_sae) = (5, 300);
        let mut w = vec![0.0; d_sae * d_in];
        Normal::new(1, Purpose::Encoder).fill(&mut w);
        let b = vec![0.0; d_sae];
        for odd in [f32::MAX, f32::INFINITY, f32::NAN, 1e-40, 3e38, f32::MIN_POSITIVE] {
            let mut x = vec![0.5; 4 * d_in];
            x[7] = odd;
            assert_same(&found((d_in, 4), (&w, &b), &x));
            let mut w = w.clone();
            w[100] = odd;
            assert_same(&found((d_in, 4), (&w, &b), &[0.5; 10]));
        }
    }
}
