//! Gradients of both matrices, latent by latent.

use super::{
    super::vector::{axpy, simd},
    ByLatent, SparseRows,
    reconstruct::OutputGrads,
};

/// One set of active latents and all that its gradients are made of.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// The activations.
    pub active: &'a SparseRows,
    /// The same by latent.
    pub by_latent: &'a ByLatent,
    /// Gradients of the outputs.
    pub grad: OutputGrads<'a>,
    /// Gradient of each slot's pre-activation.
    pub entry_grad: &'a [f32],
    /// The encoder's input, `[rows, d_in]`.
    pub input: &'a [f32],
}

impl Backward<'_> {
    /// Adds latent `l`'s gradients to its decoder row, `[d_out]`, and its encoder row, `[d_in]`.
    pub fn add(&self, latent: usize, dec: &mut [f32], enc: &mut [f32]) {
        let d_in = enc.len();
        simd(
            #[inline(always)]
            || {
                for (row, slot) in self.by_latent.of(latent) {
                    let (row, slot) = (*row as usize, *slot as usize);
                    axpy(self.active.value(slot), self.grad.of(row, latent), dec);
                    axpy(self.entry_grad[slot], &self.input[row * d_in..][..d_in], enc);
                }
            },
        );
    }

    /// The sum over rows of latent `l`'s pre-activation's gradient.
    pub fn pre(&self, latent: usize) -> f32 {
        self.by_latent.of(latent).iter().map(|(_, slot)| self.entry_grad[*slot as usize]).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::from_dense, *};

    #[test]
    fn both_matrices_equal_the_dense_products() {
        let (rows, d_sae, d_out, d_in) = (5, 11, 37, 21);
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let dense: Vec<f32> =
            (0..rows * d_sae).map(|i| if i % 3 == 0 { 1.0 + i as f32 } else { 0.0 }).collect();
        let active = from_dense(&dense, d_sae);
        let (grads, input) = (wave(rows * d_out, 0.7), wave(rows * d_in, 1.1));
        let entry_grad = wave(active.active(), 0.3);
        let by_latent = active.by_latent(d_sae);
        let backward = Backward {
            active: &active,
            by_latent: &by_latent,
            grad: OutputGrads { ends: &[], d_out, grads: &grads },
            entry_grad: &entry_grad,
            input: &input,
        };
        let pre = |r: usize, l: usize| {
            let slot = active.row(r).0.iter().position(|i| *i as usize == l);
            slot.map_or(0.0, |i| entry_grad[active.slots(r).start + i])
        };
        for l in 0..d_sae {
            let (mut dec, mut enc) = (vec![0.5; d_out], vec![0.25; d_in]);
            backward.add(l, &mut dec, &mut enc);
            let want: f32 = (0..rows).map(|r| pre(r, l)).sum();
            assert!((backward.pre(l) - want).abs() < 1e-5);
            assert_eq!(by_latent.fires(l), (0..rows).any(|r| dense[r * d_sae + l] != 0.0));
            for (c, found) in dec.iter().enumerate() {
                let want: f32 =
                    (0..rows).map(|r| dense[r * d_sae + l] * grads[r * d_out + c]).sum();
                assert!((found - 0.5 - want).abs() < 1e-3);
            }
            for (c, found) in enc.iter().enumerate() {
                let want: f32 = (0..rows).map(|r| pre(r, l) * input[r * d_in + c]).sum();
                assert!((found - 0.25 - want).abs() < 1e-3);
            }
        }
    }
}
