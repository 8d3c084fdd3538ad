//! One training step: gradients, projection, clipping, Adam, renormalisation.
//!
//! The order is that of `dictionary_learning`: the decoder's gradient loses its component along
//! each latent's row, the global norm is clipped, Adam steps, decoder rows get norm 1 again.

use rayon::prelude::*;

use super::{
    Parameters, SaeError,
    init::normalise,
    variant::{Batch, Firing, Losses, Objective},
};
use crate::kernels::{
    adam::{AdamConfig, AdamStep},
    vector::{axpy, dot, simd},
};

/// Global gradient norm above which gradients are scaled down.
const CLIP: f64 = 1.0;

/// What a step is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Factor on the sparsity coefficient.
    pub sparsity: f64,
}

/// Everything a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The parameters.
    pub params: Parameters,
    /// Adam's first moments.
    pub first: Parameters,
    /// Adam's second moments.
    pub second: Parameters,
    /// Who fired when.
    pub firing: Firing,
    /// Steps made.
    pub step: u64,
}

impl State {
    /// The state before the first step.
    pub fn new(params: Parameters, dead_after: u64) -> Self {
        let (first, second) = (params.zeros_like(), params.zeros_like());
        let firing = Firing::new(params.d_sae, dead_after);
        Self { params, first, second, firing, step: 0 }
    }
}

/// Trains one SAE.
pub struct Trainer {
    /// What a checkpoint holds.
    pub state: State,
    objective: Box<dyn Objective>,
    adam: AdamConfig,
    grads: Parameters,
    threads: usize,
}

impl Trainer {
    /// Goes on from `state`.
    pub fn new(
        state: State,
        objective: Box<dyn Objective>,
        adam: AdamConfig,
        threads: usize,
    ) -> Self {
        let grads = state.params.zeros_like();
        Self { state, objective, adam, grads, threads }
    }

    /// One step on `rows`, `[batch, d_in]`, scaled; they are used as working space.
    ///
    /// # Errors
    /// [`SaeError::Diverged`] when the gradient is not finite; the parameters are then unchanged.
    pub fn step(&mut self, rows: &mut [f32], rates: Rates) -> Result<Losses, SaeError> {
        let State { params, firing, .. } = &mut self.state;
        rows.par_chunks_mut(params.d_in).for_each(|row| {
            simd(
                #[inline(always)]
                || axpy(-1.0, &params.b_dec, row),
            )
        });
        let batch = Batch { input: rows, threads: self.threads, sparsity: rates.sparsity };
        self.grads.clear();
        let losses = self.objective.accumulate(params, batch, firing, &mut self.grads);
        project(params, &mut self.grads);
        let norm = squared_norm(&self.grads).sqrt();
        if !norm.is_finite() {
            return Err(SaeError::Diverged { step: self.state.step, norm });
        }
        self.state.step += 1;
        let scale = if norm > CLIP { CLIP / norm } else { 1.0 };
        let adam = self.adam.step(self.state.step, rates.lr, scale);
        update(&mut self.state, &self.grads, &adam);
        Ok(losses)
    }
}

/// Removes the decoder gradient's component along each latent's row.
fn project(params: &Parameters, grads: &mut Parameters) {
    let d_in = params.d_in;
    grads.w_dec.par_chunks_mut(d_in).zip(params.w_dec.par_chunks(d_in)).for_each(|(grad, row)| {
        simd(
            #[inline(always)]
            || {
                let along = dot(grad, row) / dot(row, row).max(f32::MIN_POSITIVE);
                axpy(-along, row, grad);
            },
        );
    });
}

fn squared_norm(grads: &Parameters) -> f64 {
    // Fixed blocks, added in order.
    let of_block = |block: &[f32]| {
        f64::from(simd(
            #[inline(always)]
            || dot(block, block),
        ))
    };
    let of_tensor =
        |t: &[f32]| t.par_chunks(4096).map(of_block).collect::<Vec<_>>().iter().sum::<f64>();
    grads.tensors().into_iter().map(of_tensor).sum()
}

fn update(state: &mut State, grads: &Parameters, adam: &AdamStep) {
    let State { params, first, second, .. } = state;
    let d_in = params.d_in;
    let rows = |t: [&mut [f32]; 3], grad: &[f32], unit: bool| {
        let [param, m, v] = t;
        let chunks = param.par_chunks_mut(d_in).zip(grad.par_chunks(d_in));
        chunks.zip(m.par_chunks_mut(d_in).zip(v.par_chunks_mut(d_in))).for_each(
            |((param, grad), (m, v))| {
                simd(
                    #[inline(always)]
                    || {
                        adam.update(param, grad, m, v);
                        if unit {
                            normalise(param);
                        }
                    },
                );
            },
        );
    };
    rows([&mut params.w_enc, &mut first.w_enc, &mut second.w_enc], &grads.w_enc, false);
    rows([&mut params.w_dec, &mut first.w_dec, &mut second.w_dec], &grads.w_dec, true);
    adam.update(&mut params.b_enc, &grads.b_enc, &mut first.b_enc, &mut second.b_enc);
    adam.update(&mut params.b_dec, &grads.b_dec, &mut first.b_dec, &mut second.b_dec);
    adam.update(
        &mut params.threshold,
        &grads.threshold,
        &mut first.threshold,
        &mut second.threshold,
    );
    params.threshold.iter_mut().for_each(|t| *t = t.max(0.0));
}
