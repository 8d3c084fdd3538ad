//! One training step: gradients, projection, clipping, Adam, renormalisation.
//!
//! The order is that of `dictionary_learning`: the decoder's gradient loses its component along
//! each latent's row, the global norm is clipped, Adam steps, decoder rows get norm 1 again.

use candle_core::DType;
use rayon::prelude::*;

use super::{
    Parameters, SaeError,
    gradients::Gradients,
    init::normalise,
    parameters::{NAMES, TENSORS},
    resample::{Candidates, resample},
    variant::{Batch, Firing, Losses, Objective},
};
use crate::kernels::{
    adam::{AdamConfig, AdamStep},
    vector::{axpy, simd},
};

/// Place of the encoder among [`NAMES`].
const ENCODER: usize = 0;
/// Place of the decoder.
const DECODER: usize = 2;
/// Elements of a tensor without rows that one task updates.
const STRETCH: usize = 4096;

/// What a step is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Factor on the sparsity coefficient.
    pub sparsity: f64,
}

/// How gradients become updates.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimiser {
    /// Adam's constants, by tensor in the order of [`NAMES`].
    pub adam: [AdamConfig; TENSORS],
    /// Factors on the learning rate, by tensor.
    pub lr: [f64; TENSORS],
    /// Global gradient norm above which gradients are scaled down; infinite for never.
    pub clip: f64,
    /// Whether each latent's decoder row is kept at norm 1.
    pub unit_decoder: bool,
    /// Decay of the running mean of the weights, which takes their place at the end.
    pub ema: Option<f64>,
}

impl Optimiser {
    /// One Adam for all tensors, unit decoder rows, gradients clipped at norm 1.
    pub fn adam(config: AdamConfig) -> Self {
        Self {
            adam: [config; TENSORS],
            lr: [1.0; TENSORS],
            clip: 1.0,
            unit_decoder: true,
            ema: None,
        }
    }

    /// Replaces the factor on the learning rate of tensor `name`; whether there is such a tensor.
    pub fn set_lr(&mut self, name: &str, factor: f64) -> bool {
        let place = NAMES.iter().position(|n| *n == name);
        place.is_some_and(|i| {
            self.lr[i] = factor;
            true
        })
    }
}

/// The lowest error on held-out rows so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Steps made then.
    pub step: u64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
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
    /// The running mean of the parameters, where it is kept.
    pub ema: Option<Parameters>,
    /// Who fired when.
    pub firing: Firing,
    /// What the objective carries along.
    pub memory: Vec<f64>,
    /// The best validation.
    pub best: Option<Best>,
    /// Steps made.
    pub step: u64,
}

impl State {
    /// The state before the first step; with a running mean of the weights if `ema`.
    pub fn new(params: Parameters, dead_after: u64, ema: bool) -> Self {
        let (first, second) = (params.zeros_like(), params.zeros_like());
        let firing = Firing::new(params.d_sae, dead_after);
        let ema = ema.then(|| params.clone());
        Self { params, first, second, ema, firing, memory: vec![], best: None, step: 0 }
    }

    /// The weights that the training ends with: the running mean where it is kept.
    pub fn result(&self) -> &Parameters {
        self.ema.as_ref().unwrap_or(&self.params)
    }
}

/// Trains one SAE.
pub struct Trainer {
    /// What a checkpoint holds.
    state: State,
    objective: Box<dyn Objective>,
    optimiser: Optimiser,
    grads: Gradients,
    /// Batches whose gradients are in `grads`.
    parts: u32,
    /// Whether b_dec is subtracted from inputs.
    centred: bool,
    /// The target less b_dec, where it is not the input.
    target: Vec<f32>,
    precision: DType,
}

impl Trainer {
    /// Goes on from `state`, with encoder products in `precision`: F32 or BF16.
    pub fn new(
        state: State,
        mut objective: Box<dyn Objective>,
        optimiser: Optimiser,
        centred: bool,
        precision: DType,
    ) -> Self {
        let grads = Gradients::new(state.params.shape());
        if state.step > 0 {
            objective.recall(&state.memory);
        }
        Self { state, objective, optimiser, grads, parts: 0, centred, target: vec![], precision }
    }

    /// What a checkpoint holds, after the last whole step.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Notes the error on held-out rows; whether it is the lowest.
    pub fn validated(&mut self, fvu: f64) -> bool {
        let better = self.state.best.is_none_or(|best| fvu < best.fvu);
        if better {
            self.state.best = Some(Best { step: self.state.step, fvu });
        }
        better
    }

    /// Gives dead latents new directions, see [`resample`]; returns how many.
    pub fn resample(&mut self, candidates: Candidates<'_>, threshold: f32, seed: u64) -> usize {
        resample(&mut self.state, candidates, threshold, seed)
    }

    /// The threshold for rows alone, see [`Objective::inference_threshold`].
    pub fn inference_threshold(&self) -> Option<f32> {
        self.objective.inference_threshold()
    }

    /// One step on `rows`, `[batch, d_in]`, scaled; they are used as working space. A transcoder
    /// reconstructs `target`, `[batch, d_out]`, an autoencoder the rows.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn step(
        &mut self,
        rows: &mut [f32],
        target: Option<&[f32]>,
        rates: Rates,
    ) -> Result<Losses, SaeError> {
        let losses = self.accumulate(rows, target, rates);
        self.apply(rates)?;
        Ok(losses)
    }

    /// Adds the gradients of a batch to those of the step under way; otherwise as [`Self::step`].
    pub fn accumulate(&mut self, rows: &mut [f32], target: Option<&[f32]>, rates: Rates) -> Losses {
        let params = &self.state.params;
        if !self.centred || target.is_some() {
            self.target.clear();
            self.target.extend_from_slice(target.unwrap_or(rows));
            centre(&mut self.target, &params.b_dec);
        }
        if self.centred {
            centre(rows, &params.b_dec);
        }
        let apart = !self.centred || target.is_some();
        let batch = Batch {
            input: rows,
            target: if apart { &self.target } else { rows },
            centred: self.centred,
            precision: self.precision,
            sparsity: rates.sparsity,
            step: self.state.step,
        };
        if self.parts == 0 {
            self.grads.clear();
        }
        self.parts += 1;
        self.objective.accumulate(params, batch, &mut self.state.firing, &mut self.grads)
    }

    /// Makes the step with the mean of the accumulated gradients; their norm.
    ///
    /// # Errors
    /// [`SaeError::Diverged`] when the gradient is not finite; the parameters are then unchanged.
    pub fn apply(&mut self, rates: Rates) -> Result<f64, SaeError> {
        let mean = 1.0 / f64::from(self.parts.max(1));
        self.parts = 0;
        let decoder = self.optimiser.unit_decoder.then_some(&self.state.params.w_dec[..]);
        let norm = mean * self.grads.squared_norm(decoder).sqrt();
        if !norm.is_finite() {
            let quantity = "the gradient norm".to_owned();
            return Err(SaeError::Diverged { step: self.state.step, quantity, value: norm });
        }
        self.state.step += 1;
        self.state.memory = self.objective.memory();
        let clip = if norm > self.optimiser.clip { self.optimiser.clip / norm } else { 1.0 };
        let adam: [AdamStep; TENSORS] = std::array::from_fn(|i| {
            let lr = rates.lr * self.optimiser.lr[i];
            self.optimiser.adam[i].step(self.state.step, lr, clip * mean)
        });
        update(&mut self.state, &self.grads, &adam, self.optimiser.unit_decoder);
        if let (Some(ema), Some(decay)) = (&mut self.state.ema, self.optimiser.ema) {
            average(ema, &self.state.params, decay as f32, self.optimiser.unit_decoder);
        }
        Ok(norm)
    }
}

/// Subtracts b_dec from rows, `[rows, d_out]`.
pub fn centre(rows: &mut [f32], b_dec: &[f32]) {
    rows.par_chunks_mut(b_dec.len()).for_each(|row| {
        simd(
            #[inline(always)]
            || axpy(-1.0, b_dec, row),
        )
    });
}

fn update(state: &mut State, grads: &Gradients, adam: &[AdamStep; TENSORS], unit_decoder: bool) {
    let State { params, first, second, .. } = state;
    let (d_in, d_out) = (params.d_in, params.d_out);
    let moments = first.tensors_mut().into_iter().zip(second.tensors_mut());
    let tensors = params.tensors_mut().into_iter().zip(grads.tensors().tensors()).zip(moments);
    for (i, ((param, grad), (m, v))) in tensors.enumerate() {
        let by_latent = [(ENCODER, d_in), (DECODER, d_out)].into_iter().find(|(t, _)| *t == i);
        let width = by_latent.map_or(STRETCH, |(_, width)| width);
        let chunks = param.par_chunks_mut(width).zip(grad.par_chunks(width));
        let chunks = chunks.zip(m.par_chunks_mut(width).zip(v.par_chunks_mut(width)));
        chunks.enumerate().for_each(|(n, ((param, grad), (m, v)))| {
            let grad = (by_latent.is_none() || grads.is_touched(n)).then_some(grad);
            simd(
                #[inline(always)]
                || adam[i].update(param, grad, m, v),
            );
            if unit_decoder && i == DECODER {
                normalise(param);
            }
        });
    }
    params.threshold.iter_mut().for_each(|t| *t = t.max(0.0));
}

/// The mean of decoder rows of norm 1 is shorter than they are: it gets norm 1 too.
fn average(ema: &mut Parameters, params: &Parameters, decay: f32, unit_decoder: bool) {
    let tensors = ema.tensors_mut().into_iter().zip(params.tensors());
    for (i, (mean, now)) in tensors.enumerate() {
        let normed = unit_decoder && i == DECODER;
        let width = if normed { params.d_out } else { STRETCH };
        mean.par_chunks_mut(width).zip(now.par_chunks(width)).for_each(|(mean, now)| {
            simd(
                #[inline(always)]
                || {
                    for (mean, x) in mean.iter_mut().zip(now) {
                        *mean = decay.mul_add(*mean, (1.0 - decay) * x);
                    }
                },
            );
            if normed {
                normalise(mean);
            }
        });
    }
}
