//! One file per architecture: its loss and closed-form gradients.
//!
//! Every loss is a sum over the output's width and a mean over the batch. An objective adds its
//! gradients to [`Parameters`] of zeros; projection, clipping, Adam and renormalisation are the
//! trainer's.

pub mod dense;
#[cfg(test)]
pub(super) mod fixture;
pub mod gated;
pub mod jumprelu;
pub mod penalty;
pub mod standard;
pub mod threshold;
pub mod topk;

use candle_core::DType;
use rayon::prelude::*;

use super::{Parameters, gradients::Gradients};
use crate::kernels::{
    columns::{column_sums, weighted_sums},
    product::{Matrix, Write, product},
};

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
    /// Σ over the output's width, mean over the batch, of the squared error.
    pub mse: f64,
    /// The sparsity penalty with its coefficient.
    pub sparsity: f64,
    /// The auxiliary loss without its coefficient.
    pub aux: f64,
    /// What is minimised: mse + sparsity + coefficient · aux, and what Matryoshka adds.
    pub total: f64,
    /// Mean number of active latents a row.
    pub l0: f64,
    /// Mean sum of activations a row.
    pub l1: f64,
}

impl Losses {
    /// The sum with `share` of others.
    #[must_use]
    pub fn plus(&self, other: &Self, share: f64) -> Self {
        Self {
            mse: self.mse + share * other.mse,
            sparsity: self.sparsity + share * other.sparsity,
            aux: self.aux + share * other.aux,
            total: self.total + share * other.total,
            l0: self.l0 + share * other.l0,
            l1: self.l1 + share * other.l1,
        }
    }
}

/// A batch as the objective sees it.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// What is encoded, `[rows, d_in]`: `x - b_dec`, or `x` where b_dec is not applied to inputs.
    pub input: &'a [f32],
    /// What is reconstructed, `[rows, d_out]`, minus b_dec. As b_dec is subtracted here and would
    /// be added to the output, the error is `f W_dec - target` and b_dec cancels.
    pub target: &'a [f32],
    /// Whether `input` depends on b_dec.
    pub centred: bool,
    /// In what the encoder's product multiplies: F32, or BF16 with sums in f32.
    pub precision: DType,
    /// Factor on the sparsity coefficient.
    pub sparsity: f64,
    /// Steps made before this one.
    pub step: u64,
}

impl Batch<'_> {
    /// Number of rows.
    pub fn rows(&self, params: &Parameters) -> usize {
        self.target.len() / params.d_out
    }
}

/// A training objective: the loss of an architecture and its gradients.
pub trait Objective: Send {
    /// Adds the batch's gradients to `grads`, counts who fired, and returns the losses.
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Gradients,
    ) -> Losses;

    /// What is carried from step to step beside the parameters; a checkpoint holds it.
    fn memory(&self) -> Vec<f64> {
        vec![]
    }

    /// Takes up what [`Self::memory`] gave, or nothing at the first step.
    fn recall(&mut self, _memory: &[f64]) {}

    /// The threshold above which latents count on rows alone, for architectures that choose among
    /// a whole batch in training.
    fn inference_threshold(&self) -> Option<f32> {
        None
    }
}

/// `-target`, and the path around the latents where there is one: to which the decoder is added.
fn without_latents(params: &Parameters, batch: &Batch<'_>, out: &mut Vec<f32>) {
    out.clear();
    out.par_extend(batch.target.par_iter().map(|x| -x));
    if !params.w_skip.is_empty() {
        let x = Matrix::new(batch.input, batch.rows(params), params.d_in);
        let skip = Matrix::new(&params.w_skip, params.d_out, params.d_in).t();
        product(x, skip, out, Write::Add);
    }
}

/// Adds the gradients of what lies behind all latents, given that of the output, the first d_out of
/// each of the rows of `grad_output`: b_dec, and the path around the latents where there is one.
///
/// b_dec acts through the output, and where inputs are centred through the encoder's input, where
/// row by row it is -Σ g W_enc = -(the pre-activations' gradient) W_enc; `pre_grad` is the latter
/// summed over rows, `[d_sae]`.
fn add_output_gradients(
    params: &Parameters,
    batch: &Batch<'_>,
    grad_output: &[f32],
    pre_grad: &[f32],
    grads: &mut Gradients,
) {
    let (rows, small) = (batch.rows(params), grads.small());
    let width = grad_output.len() / rows;
    let mut sum = column_sums(grad_output, width);
    if batch.centred {
        let through_encoder = weighted_sums(&params.w_enc, pre_grad, params.d_in);
        sum.iter_mut().zip(through_encoder).for_each(|(s, t)| *s -= t);
    }
    small.b_dec.iter_mut().zip(sum).for_each(|(g, s)| *g += s as f32);
    if !small.w_skip.is_empty() {
        let output = Matrix::new(grad_output, rows, width).columns(params.d_out).t();
        let input = Matrix::new(batch.input, rows, params.d_in);
        product(output, input, small.w_skip, Write::Add);
    }
}

/// Turns `output - target` into the gradient of `weight` times the mean squared error; returns the
/// error without the weight.
fn squared_error(difference: &mut [f32], width: usize, weight: f64) -> f64 {
    let rows = (difference.len() / width) as f64;
    let factor = (2.0 * weight / rows) as f32;
    let errors: Vec<f64> = difference
        .par_chunks_mut(width)
        .map(|row| {
            let error = row.iter().map(|e| f64::from(*e) * f64::from(*e)).sum::<f64>();
            row.iter_mut().for_each(|e| *e *= factor);
            error
        })
        .collect();
    errors.iter().sum::<f64>() / rows
}
