//! What a batch adds up to for each latent, and the gradient of penalties that weigh activations
//! by decoder norms.

use rayon::prelude::*;

use super::dense::{Elementwise, Entry};
use crate::{
    kernels::vector::{axpy, simd},
    sae::{Parameters, gradients::Gradients},
};

/// Sums over a batch.
#[derive(Clone, Debug)]
pub struct Sums {
    /// Rows of the batch.
    pub rows: usize,
    /// One a latent.
    pub latents: Vec<LatentSums>,
}

/// Sums over a batch for one latent.
#[derive(Clone, Copy, Debug, Default)]
pub struct LatentSums {
    /// Activations.
    pub acts: f64,
    /// Rows in which it is active.
    pub fired: u64,
    /// The penalty, without λ.
    pub penalty: f64,
    /// Its derivative with respect to the decoder norm.
    pub pull: f64,
    /// Rows in which the pre-activation is in the threshold's window.
    pub window: u64,
    /// Of these, the rows in which it is active.
    pub window_active: u64,
    /// The pre-activation's gradient.
    pub pre: f64,
    /// The gradients of b_enc, threshold, r_mag, b_mag.
    pub own: [f64; 4],
}

impl Sums {
    /// Nothing yet.
    pub fn new(rows: usize, d_sae: usize) -> Self {
        Self { rows, latents: vec![LatentSums::default(); d_sae] }
    }

    /// Mean active latents a row.
    pub fn l0(&self) -> f64 {
        self.mean(|latent| latent.fired as f64)
    }

    /// The mean over the rows of something summed over the latents.
    pub fn mean(&self, of: impl Fn(&LatentSums) -> f64) -> f64 {
        self.latents.iter().map(of).sum::<f64>() / self.rows as f64
    }

    /// Adds what was summed of the latents' own gradients.
    pub fn add_to(&self, grads: &mut Gradients) {
        for (i, tensor) in grads.small().own.into_iter().enumerate() {
            tensor.iter_mut().zip(&self.latents).for_each(|(g, latent)| *g += latent.own[i] as f32);
        }
    }
}

impl LatentSums {
    /// Counts an entry and returns its pre-activation's gradient.
    pub fn add<const C: usize>(
        &mut self,
        activation: &impl Elementwise<C>,
        params: &Parameters,
        entry: Entry<C>,
        per_row: f32,
    ) -> f32 {
        if entry.f[0] > 0.0 {
            self.acts += f64::from(entry.f[0]);
            self.fired += 1;
        }
        if entry.f.iter().any(|f| *f > 0.0) {
            let (penalty, pull) = activation.penalty(params, entry.latent, entry.f);
            self.penalty += f64::from(penalty);
            self.pull += f64::from(pull);
        }
        let window = activation.concerns(params, entry.latent, entry.a);
        self.window += u64::from(window);
        self.window_active += u64::from(window && entry.f[0] > 0.0);
        let gradient = activation.backward(params, entry, per_row);
        self.pre += f64::from(gradient.pre);
        self.own.iter_mut().zip(gradient.own).for_each(|(sum, g)| *sum += f64::from(g));
        gradient.pre
    }
}

/// Adds the gradient of a penalty `per_row · Σ p(f‖W_dec‖)` with respect to the decoder, whose
/// derivative with respect to each norm is summed in `pull`.
pub fn add_norm_gradient(params: &Parameters, sums: &Sums, per_row: f64, grads: &mut Gradients) {
    let latents = grads.latents().zip(params.w_dec.par_chunks(params.d_out)).zip(&sums.latents);
    latents.filter(|(_, sums)| sums.pull != 0.0).for_each(|((grads, row), sums)| {
        let norm = f64::from(crate::sae::parameters::norm(row));
        if norm > 0.0 {
            let (dec, _) = grads.rows();
            simd(
                #[inline(always)]
                || axpy((per_row * sums.pull / norm) as f32, row, dec),
            );
        }
    });
}
