//! Decoding, and with the rows' errors at hand the gradients of their activations.
//!
//! A row's latents are read once for both: it is decoded, its error becomes the output's gradient,
//! and that is multiplied with the same decoder rows while they are in the second-level cache.

use rayon::prelude::*;

use super::{
    super::vector::{axpy, simd, squared_norm},
    SparseRows, group,
};

/// Columns that are taken at a time: 8 vectors of 16. A thousand latents' parts of them stay in the
/// second-level cache.
const TILE: usize = 128;
/// Interleaved partial sums of a product of two rows.
const LANES: usize = 16;

/// A decoder, of which groups of latents may have reconstructions of their own.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    /// `[d_sae, d_out]`.
    pub weights: &'a [f32],
    /// Width of the output.
    pub d_out: usize,
    /// Latents up to the first of these are the first group, from there up to the second the
    /// second, ..., all others the last. The reconstruction of a group is that of its latents and
    /// of all before.
    pub ends: &'a [usize],
    /// What makes a reconstruction's gradient of its error; one more than `ends`.
    pub factors: &'a [f32],
}

/// `out[row] += Σ value · decoder[latent]`; `decoder` is `[d_sae, d_out]`, `out` is
/// `[rows, d_out]`.
pub fn decode_add(active: &SparseRows, decoder: &[f32], d_out: usize, out: &mut [f32]) {
    out.par_chunks_mut(d_out).enumerate().for_each(|(row, out)| {
        simd(
            #[inline(always)]
            || {
                let (index, value) = active.row(row);
                for (l, v) in index.iter().zip(value) {
                    axpy(*v, &decoder[*l as usize * d_out..][..d_out], out);
                }
            },
        );
    });
}

/// Decodes `active` and goes back to its activations.
///
/// `error`, `[rows, d_out]`, holds the output without latents less the target, and then the whole
/// output's error. `grads`, `[rows, groups, d_out]`, become the gradients with respect to the
/// output of each group's latents, which take part in its own reconstruction and in those of all
/// groups after it. `entry_grad` becomes the
/// gradient of every slot of `active`. Returns each group's squared errors, `[rows, groups]`.
pub fn reconstruct(
    active: &SparseRows,
    decoder: &Decoder<'_>,
    error: &mut [f32],
    grads: &mut Vec<f32>,
    entry_grad: &mut Vec<f32>,
) -> Vec<f64> {
    let groups = decoder.factors.len();
    let width = groups * decoder.d_out;
    grads.resize(active.rows() * width, 0.0);
    entry_grad.resize(active.value.len(), 0.0);
    let mut squared = vec![0.0; active.rows() * groups];
    let rows = error.par_chunks_mut(decoder.d_out).zip(grads.par_chunks_mut(width));
    let rows = rows.zip(active.cut(entry_grad)).zip(squared.par_chunks_mut(groups)).enumerate();
    rows.for_each_init(Vec::new, |lanes, (row, (((error, grads), entry_grad), squared))| {
        let (index, value) = active.row(row);
        let row = Row { decoder, index, value };
        simd(
            #[inline(always)]
            || row.run(Outputs { error, grads, squared }, lanes, entry_grad),
        );
    });
    squared
}

/// One row's active latents.
struct Row<'a> {
    decoder: &'a Decoder<'a>,
    index: &'a [u32],
    value: &'a [f32],
}

/// Of one row, as in [`reconstruct`].
struct Outputs<'a> {
    error: &'a mut [f32],
    grads: &'a mut [f32],
    squared: &'a mut [f64],
}

impl Row<'_> {
    /// As [`reconstruct`], for one row. Columns depend on each other only in the sums at the end.
    #[inline(always)]
    fn run(&self, mut out: Outputs<'_>, lanes: &mut Vec<[f32; LANES]>, entry_grad: &mut [f32]) {
        let d_out = self.decoder.d_out;
        lanes.clear();
        lanes.resize(self.index.len(), [0.0; LANES]);
        let whole = d_out / TILE * TILE;
        for begin in (0..whole).step_by(TILE) {
            self.tile(begin, TILE, &mut out, lanes);
        }
        if whole < d_out {
            self.tile(whole, d_out - whole, &mut out, lanes);
        }
        for (grad, lanes) in entry_grad.iter_mut().zip(lanes) {
            *grad = lanes.iter().sum();
        }
    }

    /// Columns `begin..begin + n`; compiled once for whole tiles, whose sums stay in registers.
    #[inline(always)]
    fn tile(&self, begin: usize, n: usize, out: &mut Outputs<'_>, lanes: &mut [[f32; LANES]]) {
        let Decoder { weights, d_out, ends, factors } = *self.decoder;
        let columns = |row: usize| row * d_out + begin..row * d_out + begin + n;
        let mut sums = [0.0; TILE];
        sums[..n].copy_from_slice(&out.error[columns(0)]);
        let mut next = 0;
        for (group, factor) in factors.iter().enumerate() {
            let end = ends.get(group).copied().unwrap_or(usize::MAX);
            while let Some(l) = self.index.get(next).filter(|l| (**l as usize) < end) {
                let (value, row) = (self.value[next], &weights[columns(*l as usize)]);
                for i in 0..n {
                    sums[i] = value.mul_add(row[i], sums[i]);
                }
                next += 1;
            }
            out.squared[group] += squared_norm(&sums[..n]);
            for (grad, sum) in out.grads[columns(group)].iter_mut().zip(&sums[..n]) {
                *grad = factor * sum;
            }
        }
        out.error[columns(0)].copy_from_slice(&sums[..n]);
        for group in (1..factors.len()).rev() {
            let (before, after) = out.grads.split_at_mut(group * d_out);
            axpy(1.0, &after[columns(0)], &mut before[columns(group - 1)]);
        }
        for (l, lanes) in self.index.iter().zip(lanes) {
            let group = group(ends, *l as usize);
            let (row, row_rest) = weights[columns(*l as usize)].as_chunks::<LANES>();
            let (grad, grad_rest) = out.grads[columns(group)].as_chunks::<LANES>();
            // A copy, or every lane would be stored at every step.
            let mut sums = *lanes;
            for (row, grad) in row.iter().zip(grad) {
                for i in 0..LANES {
                    sums[i] = grad[i].mul_add(row[i], sums[i]);
                }
            }
            for (sum, (row, grad)) in sums.iter_mut().zip(row_rest.iter().zip(grad_rest)) {
                *sum = grad.mul_add(*row, *sum);
            }
            *lanes = sums;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::from_dense, *};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// Two reconstructions against the dense formula, with so many latents that columns are taken
    /// in parts.
    #[test]
    fn groups_equal_the_dense_products() {
        let (rows, d_sae, d_out, ends) = (3, 1500, 700, [900]);
        let dense: Vec<f32> = (0..rows * d_sae)
            .map(|i| if i % 7 == 6 { 0.0 } else { 0.1 + (i as f32 * 0.9).sin().abs() })
            .collect();
        let (weights, start) = (wave(d_sae * d_out, 0.3), wave(rows * d_out, 0.7));
        let active = from_dense(&dense, d_sae);
        let factors = [0.5, 2.0];
        let decoder = Decoder { weights: &weights, d_out, ends: &ends, factors: &factors };
        let (mut error, mut grads, mut entry_grad) = (start.clone(), vec![], vec![]);
        let squared = reconstruct(&active, &decoder, &mut error, &mut grads, &mut entry_grad);

        let mut decoded = start.clone();
        decode_add(&active, &weights, d_out, &mut decoded);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{a}, {b}");
        let of = |row: usize, latent: usize| {
            &grads[(2 * row + usize::from(latent >= ends[0])) * d_out..][..d_out]
        };
        for r in 0..rows {
            let partial = |end: usize, c: usize| -> f64 {
                let term = |l: usize| f64::from(dense[r * d_sae + l] * weights[l * d_out + c]);
                f64::from(start[r * d_out + c]) + (0..end).map(term).sum::<f64>()
            };
            let first: Vec<f64> = (0..d_out).map(|c| partial(900, c)).collect();
            let whole: Vec<f64> = (0..d_out).map(|c| partial(d_sae, c)).collect();
            close(squared[2 * r], first.iter().map(|e| e * e).sum());
            close(squared[2 * r + 1], whole.iter().map(|e| e * e).sum());
            for c in 0..d_out {
                close(f64::from(error[r * d_out + c]), whole[c]);
                close(f64::from(decoded[r * d_out + c]), whole[c]);
                close(f64::from(of(r, 899)[c]), 0.5 * first[c] + 2.0 * whole[c]);
                close(f64::from(of(r, 900)[c]), 2.0 * whole[c]);
            }
            for (slot, l) in active.slots(r).zip(active.row(r).0).step_by(101) {
                let l = *l as usize;
                let grad = of(r, l).iter().zip(&weights[l * d_out..][..d_out]);
                close(
                    f64::from(entry_grad[slot]),
                    grad.map(|(g, w)| f64::from(*g) * f64::from(*w)).sum(),
                );
            }
        }
    }
}
