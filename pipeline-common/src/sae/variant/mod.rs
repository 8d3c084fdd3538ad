//! One file per architecture: its loss and closed-form gradients.
//!
//! Every loss is a sum over `d_in` and a mean over the batch. An objective adds its gradients to
//! [`Parameters`] of zeros; projection, clipping, Adam and renormalisation are the trainer's.

pub mod dense;
#[cfg(test)]
mod fixture;
pub mod jumprelu;
pub mod standard;
pub mod topk;

use rayon::prelude::*;

use super::Parameters;

/// Tokens since each latent last fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    /// Tokens since the latent was last active, `[d_sae]`.
    pub since: Vec<u64>,
    /// A latent is dead after so many tokens without firing.
    pub dead_after: u64,
}

impl Firing {
    /// Every latent as if it had just fired.
    pub fn new(d_sae: usize, dead_after: u64) -> Self {
        Self { since: vec![0; d_sae], dead_after }
    }

    /// Counts a batch of `tokens` in which `fires(latent)` tells who was active.
    pub fn update(&mut self, tokens: usize, fires: impl Fn(usize) -> bool + Sync) {
        self.since.par_iter_mut().enumerate().for_each(|(latent, since)| {
            *since = if fires(latent) { 0 } else { *since + tokens as u64 };
        });
    }

    /// The dead latents, ascending.
    pub fn dead(&self) -> Vec<usize> {
        (0..self.since.len()).filter(|l| self.since[*l] >= self.dead_after).collect()
    }

    /// The share of dead latents.
    pub fn dead_fraction(&self) -> f64 {
        self.dead().len() as f64 / self.since.len().max(1) as f64
    }
}

/// The parts of a batch's loss and its sparsity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Σ over d_in, mean over the batch, of the squared error.
    pub mse: f64,
    /// The sparsity penalty with its coefficient: λ·L1 or λ·L0.
    pub sparsity: f64,
    /// The auxiliary loss without its coefficient.
    pub aux: f64,
    /// What is minimised: mse + sparsity + coefficient · aux.
    pub total: f64,
    /// Mean number of active latents a row.
    pub l0: f64,
    /// Mean sum of activations a row.
    pub l1: f64,
}

/// A batch as the objective sees it.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `x - b_dec`, `[rows, d_in]`. Since b_dec is subtracted before and added after, the error
    /// is `f W_dec - input` and b_dec cancels.
    pub input: &'a [f32],
    /// Threads for dense products.
    pub threads: usize,
    /// Factor on the sparsity coefficient.
    pub sparsity: f64,
}

/// A training objective: the loss of an architecture and its gradients.
pub trait Objective: Send {
    /// Adds the batch's gradients to `grads`, counts who fired, and returns the losses.
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Parameters,
    ) -> Losses;
}

/// Adds b_dec's gradient: through the reconstruction (`grad_output`, `[rows, d_in]`), and through
/// the encoder's input, where row by row it is -Σ g W_enc = -(b_enc's gradient) W_enc.
fn add_b_dec_gradient(params: &Parameters, grad_output: &[f32], grads: &mut Parameters) {
    let d_in = params.d_in;
    let mut sum = crate::kernels::columns::column_sums(grad_output, d_in);
    let weighted: Vec<f32> = params
        .w_enc
        .par_chunks(d_in)
        .zip(&grads.b_enc)
        .flat_map_iter(|(row, g)| row.iter().map(move |w| w * g))
        .collect();
    let through_encoder = crate::kernels::columns::column_sums(&weighted, d_in);
    sum.iter_mut().zip(through_encoder).for_each(|(s, t)| *s -= t);
    grads.b_dec.iter_mut().zip(sum).for_each(|(g, s)| *g += s as f32);
}

/// Turns `output - target` into the gradient of the mean squared error and returns the error.
fn squared_error(difference: &mut [f32], d_in: usize, weight: f64) -> f64 {
    let rows = (difference.len() / d_in) as f64;
    let factor = (2.0 * weight / rows) as f32;
    let errors: Vec<f64> = difference
        .par_chunks_mut(d_in)
        .map(|row| {
            let error = row.iter().map(|e| f64::from(*e) * f64::from(*e)).sum::<f64>();
            row.iter_mut().for_each(|e| *e *= factor);
            error
        })
        .collect();
    errors.iter().sum::<f64>() / rows
}
