//! TopK (Gao et al. 2024), BatchTopK (Bussmann et al. 2024) and Matryoshka BatchTopK (Bussmann et
//! al. 2025), with an auxiliary loss that revives dead latents.
//!
//! Only the encoder product is dense, and it is made in blocks of rows whose pre-activations are
//! reduced to k latents while they are in cache. Decoding and all gradients touch k latents a row.

use rayon::prelude::*;

use super::{
    Batch, Firing, Losses, Objective, add_output_gradients, squared_error,
    threshold::{Running, Threshold, mean_of_rows, of_batch},
    without_latents,
};
use crate::{
    kernels::{
        columns::row_variance,
        sparse::{
            Backward, ByLatent, OutputGrads, SparseRows, decode_add, entry_gradients,
            latent_gradients,
        },
        vector::simd,
    },
    sae::{
        Parameters,
        encode::{Encoder, Scratch},
    },
};

/// The auxiliary loss: dead latents explain the residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aux {
    /// Its weight.
    pub coefficient: f64,
    /// Dead latents used a row, at most.
    pub k: usize,
    /// Whose form.
    pub form: AuxForm,
}

/// The two published forms of the auxiliary loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AuxForm {
    /// Squared error over the residual's variance, positive activations only
    /// (`dictionary_learning`, OpenAI).
    Normalised,
    /// Squared error times min(dead / k_aux, 1), any sign (SAELens).
    Scaled,
}

/// Among what the k largest are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// Each row's activations.
    Row,
    /// All activations of a batch: k times as many as there are rows.
    Batch,
}

/// How many latents are active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Active latents a row, on average.
    pub k: usize,
    /// Among what they are chosen.
    pub among: Among,
    /// k before the first step, from which it falls linearly, and the steps until it is `k`.
    pub anneal: Option<(usize, u64)>,
    /// Choose by activation times decoder norm (SAELens); the same latents for unit norms.
    pub by_decoder_norm: bool,
}

impl Selection {
    /// The k largest of each row.
    pub fn of_rows(k: usize) -> Self {
        Self { k, among: Among::Row, anneal: None, by_decoder_norm: false }
    }

    /// k at a step.
    pub fn k_at(&self, step: u64) -> usize {
        match self.anneal {
            Some((first, steps)) if step < steps => {
                let share = step as f64 / steps as f64;
                let k = first as f64 + (self.k as f64 - first as f64) * share;
                (k.round() as usize).max(1)
            }
            _ => self.k,
        }
    }
}

/// The latents up to some number, which reconstruct the target alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prefix {
    /// Number of latents.
    pub latents: usize,
    /// Weight of its error in the loss.
    pub weight: f64,
}

/// Buffers of one set of active latents.
#[derive(Debug, Default)]
struct Pass {
    active: SparseRows,
    /// The output's error, then its gradient, of each group of latents, `[rows, d_out]`.
    grads: Vec<Vec<f32>>,
    entry_grad: Vec<f32>,
}

/// The objective of TopK and its relatives.
#[derive(Debug)]
pub struct TopK {
    selection: Selection,
    /// Ascending; the last holds all latents.
    prefixes: Vec<Prefix>,
    /// Number of latents of all prefixes but the last.
    ends: Vec<usize>,
    aux: Aux,
    threshold: Threshold,
    main: Pass,
    revival: Pass,
    /// Gradient of the pre-activations, summed over rows, `[d_sae]`.
    pre_grad: Vec<f32>,
    scratch: Scratch,
}

impl TopK {
    /// One reconstruction by all latents.
    pub fn new(selection: Selection, aux: Aux, running: Running) -> Self {
        Self {
            selection,
            prefixes: vec![Prefix { latents: usize::MAX, weight: 1.0 }],
            ends: vec![],
            aux,
            threshold: Threshold::new(running),
            main: Pass::default(),
            revival: Pass::default(),
            pre_grad: vec![],
            scratch: Scratch::default(),
        }
    }

    /// A reconstruction by each of `prefixes`, whose numbers of latents ascend to all.
    #[must_use]
    pub fn matryoshka(mut self, prefixes: Vec<Prefix>) -> Self {
        self.ends = prefixes.iter().rev().skip(1).rev().map(|p| p.latents).collect();
        self.prefixes = prefixes;
        self
    }

    fn encode(&mut self, params: &Parameters, batch: &Batch<'_>) {
        let norms = self.selection.by_decoder_norm.then(|| params.decoder_norms());
        let encoder = Encoder { norms: norms.as_deref(), ..Encoder::new(params, batch.threads) };
        let (k, rows) = (self.selection.k_at(batch.step), batch.rows(params));
        let (scratch, active) = (&mut self.scratch, &mut self.main.active);
        let smallest = match self.selection.among {
            Among::Row => {
                encoder.top_k(batch.input, k, 0.0, scratch, active);
                mean_of_rows(active)
            }
            Among::Batch => {
                active.clear();
                encoder.batch_top_k(batch.input, k * rows, scratch, active);
                of_batch(active)
            }
        };
        self.threshold.update(batch.step, smallest);
    }

    /// Decodes prefix by prefix; leaves in `self.main.grads` the gradient of the output of each
    /// group of latents, which is that of every prefix it belongs to. Returns the whole's squared
    /// error, that of all prefixes with their weights, and the last's error, `target - output`.
    fn decode(&mut self, params: &Parameters, batch: &Batch<'_>) -> (f64, f64, Vec<f32>) {
        let (d_out, Pass { active, grads, .. }) = (params.d_out, &mut self.main);
        grads.resize(self.prefixes.len(), vec![]);
        let mut output = vec![];
        without_latents(params, batch, &mut output);
        let (mut begin, mut mse, mut weighted) = (0, 0.0, 0.0);
        for (prefix, grad) in self.prefixes.iter().zip(grads.iter_mut()) {
            let end = prefix.latents.min(params.d_sae);
            decode_add(active, begin..end, &params.w_dec, d_out, &mut output);
            grad.clear();
            grad.extend_from_slice(&output);
            mse = squared_error(grad, d_out, prefix.weight);
            weighted += prefix.weight * mse;
            begin = end;
        }
        for group in (1..grads.len()).rev() {
            let (before, after) = grads.split_at_mut(group);
            let pairs = before[group - 1].par_iter_mut().zip(&after[0]);
            pairs.for_each(|(earlier, later)| *earlier += later);
        }
        output.par_iter_mut().for_each(|x| *x = -*x);
        (mse, weighted, output)
    }

    /// The auxiliary loss and, in `self.revival`, its gradients. `residual` is `target - output`,
    /// detached; `dead` is not empty.
    fn revive(
        &mut self,
        params: &Parameters,
        batch: &Batch<'_>,
        dead: &[usize],
        residual: &[f32],
    ) -> f64 {
        let (d_in, d_out) = (params.d_in, params.d_out);
        let gather = |t: &[f32], width: usize| -> Vec<f32> {
            dead.iter().flat_map(|l| t[l * width..(l + 1) * width].iter().copied()).collect()
        };
        let (w_enc, b_enc) = (gather(&params.w_enc, d_in), gather(&params.b_enc, 1));
        let threads = batch.threads;
        let encoder = Encoder { w_enc: &w_enc, b_enc: &b_enc, norms: None, d_in, threads };
        let floor = if self.aux.form == AuxForm::Normalised { 0.0 } else { f32::NEG_INFINITY };
        let pass = &mut self.revival;
        let k = self.aux.k.min(dead.len());
        encoder.top_k(batch.input, k, floor, &mut self.scratch, &mut pass.active);
        pass.active.rename(dead);
        let weight = match self.aux.form {
            AuxForm::Normalised => 1.0 / row_variance(residual, d_out),
            AuxForm::Scaled => (dead.len() as f64 / self.aux.k as f64).min(1.0),
        };
        if !weight.is_finite() {
            pass.active.reset(0, 0);
            return 0.0;
        }
        pass.grads.resize(1, vec![]);
        let grad = &mut pass.grads[0];
        grad.clear();
        grad.par_extend(residual.par_iter().map(|t| -t));
        decode_add(&pass.active, 0..params.d_sae, &params.w_dec, d_out, grad);
        let error = squared_error(grad, d_out, self.aux.coefficient * weight);
        let output = OutputGrads { ends: &[], grads: &pass.grads };
        entry_gradients(&pass.active, &params.w_dec, d_out, output, &mut pass.entry_grad);
        error * weight
    }

    /// The latents that are dead for this batch's auxiliary loss.
    fn dead(&self, rows: usize, by_latent: &ByLatent, firing: &mut Firing) -> Vec<usize> {
        let before = firing.dead();
        firing.update(rows, |latent| by_latent.fires(latent));
        match self.aux.form {
            _ if self.aux.coefficient == 0.0 => vec![],
            // A latent that fires in this very batch is alive; SAELens looks at it one step later.
            AuxForm::Normalised => firing.dead(),
            AuxForm::Scaled => before,
        }
    }

    /// Gradients of both matrices and of the pre-activations, latent by latent.
    fn add_gradients(
        &mut self,
        input: &[f32],
        main: &ByLatent,
        revived: Option<&ByLatent>,
        grads: &mut Parameters,
    ) {
        let mut pre_grad = std::mem::take(&mut self.pre_grad);
        pre_grad.clear();
        pre_grad.resize(grads.d_sae, 0.0);
        let main = self.main.backward(&self.ends, main, input);
        let revived = revived.map(|by_latent| self.revival.backward(&[], by_latent, input));
        let decoder = grads.w_dec.par_chunks_mut(grads.d_out);
        let latents = decoder.zip(grads.w_enc.par_chunks_mut(grads.d_in)).zip(&mut pre_grad);
        latents.enumerate().for_each(|(latent, ((dec, enc), pre))| {
            simd(
                #[inline(always)]
                || {
                    latent_gradients(&main, latent, dec, enc, pre);
                    if let Some(revived) = &revived {
                        latent_gradients(revived, latent, dec, enc, pre);
                    }
                },
            );
        });
        grads.b_enc.iter_mut().zip(&pre_grad).for_each(|(b, g)| *b += g);
        self.pre_grad = pre_grad;
    }
}

impl Pass {
    fn backward<'a>(
        &'a self,
        ends: &'a [usize],
        by_latent: &'a ByLatent,
        input: &'a [f32],
    ) -> Backward<'a> {
        Backward {
            active: &self.active,
            by_latent,
            grad: OutputGrads { ends, grads: &self.grads },
            entry_grad: &self.entry_grad,
            input,
        }
    }
}

impl Objective for TopK {
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Parameters,
    ) -> Losses {
        let rows = batch.rows(params);
        self.encode(params, &batch);
        let (mse, weighted, residual) = self.decode(params, &batch);
        let pass = &mut self.main;
        let output = OutputGrads { ends: &self.ends, grads: &pass.grads };
        entry_gradients(&pass.active, &params.w_dec, params.d_out, output, &mut pass.entry_grad);
        let by_latent = pass.active.by_latent(params.d_sae);
        let dead = self.dead(rows, &by_latent, firing);
        let aux = if dead.is_empty() { 0.0 } else { self.revive(params, &batch, &dead, &residual) };
        let revived = (!dead.is_empty()).then(|| self.revival.active.by_latent(params.d_sae));
        self.add_gradients(batch.input, &by_latent, revived.as_ref(), grads);
        // The auxiliary reconstruction has no b_dec; every prefix has, and their gradients are
        // all in the first group's.
        add_output_gradients(params, &batch, &self.main.grads[0], &self.pre_grad, grads);
        Losses {
            mse,
            aux,
            total: weighted + self.aux.coefficient * aux,
            l0: self.main.active.active() as f64 / rows as f64,
            l1: self.main.active.mean_sum(),
            ..Losses::default()
        }
    }

    fn memory(&self) -> Vec<f64> {
        self.threshold.value().into_iter().collect()
    }

    fn recall(&mut self, memory: &[f64]) {
        self.threshold.set(memory.first().copied());
    }

    fn inference_threshold(&self) -> Option<f32> {
        let batch = self.selection.among == Among::Batch;
        // Unset after a training that ended before the first step that counts: every positive one.
        batch.then(|| self.threshold.value().unwrap_or(0.0) as f32)
    }
}
