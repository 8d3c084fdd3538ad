//! ReLU with an L1 penalty weighted by the decoder's norms (Bricken et al. 2023; Conerly et al.,
//! April 2024): `λ · mean Σ fᵢ‖W_dec,i‖`.

use super::dense::{Elementwise, Entry};
use crate::sae::Parameters;

/// The ReLU activation and its penalty.
#[derive(Clone, Debug, Default)]
pub struct Standard {
    norms: Vec<f32>,
}

impl Elementwise for Standard {
    fn prepare(&mut self, params: &Parameters) {
        self.norms = params.decoder_norms();
    }

    #[inline(always)]
    fn activate(&self, _params: &Parameters, _l: usize, a: f32) -> f32 {
        a.max(0.0)
    }

    #[inline(always)]
    fn penalty(&self, l: usize, _a: f32, f: f32) -> f32 {
        f * self.norms[l]
    }

    #[inline(always)]
    fn backward(&self, _params: &Parameters, e: Entry, per_row: f32) -> (f32, f32) {
        let to_pre = if e.a > 0.0 { e.g + per_row * self.norms[e.latent] } else { 0.0 };
        (to_pre, 0.0)
    }

    fn add_decoder_gradient(
        &self,
        params: &Parameters,
        sums: &[f32],
        per_row: f32,
        grads: &mut Parameters,
    ) {
        let rows =
            params.w_dec.chunks_exact(params.d_in).zip(grads.w_dec.chunks_exact_mut(params.d_in));
        for ((row, grad), (norm, sum)) in rows.zip(self.norms.iter().zip(sums)) {
            if *norm > 0.0 {
                let factor = per_row * sum / norm;
                grad.iter_mut().zip(row).for_each(|(g, w)| *g += factor * w);
            }
        }
    }
}
