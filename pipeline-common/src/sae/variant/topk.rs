//! TopK (Gao et al. 2024), BatchTopK (Bussmann et al. 2024) and Matryoshka BatchTopK (Bussmann et
//! al. 2025), with an auxiliary loss that revives dead latents.
//!
//! Only the encoder product is dense, and it is made in blocks of rows whose pre-activations are
//! reduced to k latents while they are in cache. Decoding and all gradients touch k latents a row.

use rayon::prelude::*;

use super::{
    Batch, Firing, Losses, Objective, add_output_gradients,
    threshold::{Running, Threshold, mean_of_rows, of_batch},
    without_latents,
};
use crate::{
    kernels::{
        columns::row_variance,
        sparse::{
            ByLatent, SparseRows,
            gradients::{RowSums, Tiles},
            reconstruct::{Decoder, reconstruct},
        },
    },
    sae::{
        Parameters,
        encode::{Encoder, Shift},
        gradients::Gradients,
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

/// The published forms of the auxiliary loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AuxForm {
    /// Squared error over the residual's variance, positive activations only
    /// (`dictionary_learning`, OpenAI).
    Normalised,
    /// Squared error times min(dead / k_aux, 1), any sign (SAELens).
    Scaled,
    /// As scaled, positive activations only (sparsify).
    ScaledPositive,
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
    encoder: Encoder,
    active: SparseRows,
    /// Gradients of the outputs of each group of latents, `[rows, groups, d_out]`.
    grads: Vec<f32>,
    grad_tiles: Tiles,
    /// Gradients of the activations.
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
    /// `output - target`, `[rows, d_out]`.
    error: Vec<f32>,
    input: Tiles,
    main: Pass,
    revival: Pass,
    /// Gradient of the pre-activations, summed over rows, `[d_sae]`.
    pre_grad: Vec<f32>,
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
            error: vec![],
            input: Tiles::default(),
            main: Pass::default(),
            revival: Pass::default(),
            pre_grad: vec![],
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
        let shift = Shift { b_enc: &params.b_enc, norms: norms.as_deref() };
        let (k, rows) = (self.selection.k_at(batch.step), batch.rows(params));
        let Pass { encoder, active, .. } = &mut self.main;
        encoder.load_for(&params.w_enc, params.d_in, batch.precision, batch.input);
        let smallest = match self.selection.among {
            Among::Row => {
                encoder.top_k(batch.input, shift, (k, 0.0), active);
                mean_of_rows(active, shift.norms)
            }
            Among::Batch => {
                active.clear();
                encoder.batch_top_k(batch.input, shift, k * rows, active);
                of_batch(active, shift.norms)
            }
        };
        self.threshold.update(batch.step, smallest);
    }

    /// Decodes and goes back to the activations, prefix by prefix. Returns the whole's squared
    /// error and that of all prefixes with their weights.
    fn decode(&mut self, params: &Parameters, batch: &Batch<'_>) -> (f64, f64) {
        let rows = batch.rows(params) as f64;
        without_latents(params, batch, &mut self.error);
        let factors: Vec<f32> =
            self.prefixes.iter().map(|p| (2.0 * p.weight / rows) as f32).collect();
        let squared = self.main.reconstruct(params, &self.ends, &factors, &mut self.error);
        let mse = |group| squared.iter().skip(group).step_by(factors.len()).sum::<f64>() / rows;
        let weighted = self.prefixes.iter().enumerate().map(|(g, p)| p.weight * mse(g)).sum();
        (mse(factors.len() - 1), weighted)
    }

    /// The auxiliary loss and, in `self.revival`, its gradients; the dead latents' output is to be
    /// the residual, which is a constant here. `dead` is not empty. Uses up `self.error`.
    fn revive(&mut self, params: &Parameters, batch: &Batch<'_>, dead: &[usize]) -> f64 {
        let d_in = params.d_in;
        let gather = |t: &[f32], width: usize| -> Vec<f32> {
            dead.iter().flat_map(|l| t[l * width..(l + 1) * width].iter().copied()).collect()
        };
        let (w_enc, b_enc) = (gather(&params.w_enc, d_in), gather(&params.b_enc, 1));
        let floor = if self.aux.form == AuxForm::Scaled { f32::NEG_INFINITY } else { 0.0 };
        let pass = &mut self.revival;
        let k = self.aux.k.min(dead.len());
        pass.encoder.load_for(&w_enc, d_in, batch.precision, batch.input);
        let shift = Shift { b_enc: &b_enc, norms: None };
        pass.encoder.top_k(batch.input, shift, (k, floor), &mut pass.active);
        pass.active.rename(dead);
        let weight = match self.aux.form {
            AuxForm::Normalised => 1.0 / row_variance(&self.error, params.d_out),
            AuxForm::Scaled | AuxForm::ScaledPositive => {
                (dead.len() as f64 / self.aux.k as f64).min(1.0)
            }
        };
        if !weight.is_finite() {
            pass.active.reset(0, 0);
            return 0.0;
        }
        let rows = batch.rows(params) as f64;
        let factor = (2.0 * self.aux.coefficient * weight / rows) as f32;
        let squared = pass.reconstruct(params, &[], &[factor], &mut self.error);
        weight * squared.iter().sum::<f64>() / rows
    }

    /// The latents that are dead for this batch's auxiliary loss.
    fn dead(&self, rows: usize, by_latent: &ByLatent, firing: &mut Firing) -> Vec<usize> {
        let before = firing.dead();
        firing.update(rows, |latent| by_latent.fires(latent));
        match self.aux.form {
            _ if self.aux.coefficient == 0.0 => vec![],
            // A latent that fires in this very batch is alive; the others see that one step later.
            AuxForm::Normalised => firing.dead(),
            AuxForm::Scaled | AuxForm::ScaledPositive => before,
        }
    }

    /// Gradients of both matrices and of the pre-activations, latent by latent; `revived` if dead
    /// latents have an auxiliary loss.
    fn add_gradients(
        &mut self,
        params: &Parameters,
        input: &[f32],
        (main, revived): (&ByLatent, Option<&ByLatent>),
        grads: &mut Gradients,
    ) {
        self.input.load(input, params.d_in);
        self.main.grad_tiles.load(&self.main.grads, params.d_out);
        let mut passes = vec![(self.main.factors(main), &self.main, main, &self.ends[..])];
        if let Some(by_latent) = revived {
            self.revival.grad_tiles.load(&self.revival.grads, params.d_out);
            passes.push((self.revival.factors(by_latent), &self.revival, by_latent, &[]));
        }
        let (mut decoder, mut encoder) = (vec![], vec![]);
        for ([acts, entry_grads], pass, by_latent, ends) in &passes {
            let matrix = &pass.grad_tiles;
            decoder.push(RowSums { by_latent, factors: acts, matrix, ends });
            let matrix = &self.input;
            encoder.push(RowSums { by_latent, factors: entry_grads, matrix, ends: &[] });
        }
        grads.add(&decoder, &encoder);
        let of_latent = |l| encoder.iter().flat_map(|s| &s.factors[s.by_latent.range(l)]).sum();
        (0..params.d_sae).into_par_iter().map(of_latent).collect_into_vec(&mut self.pre_grad);
        let [b_enc, ..] = grads.small().own;
        b_enc.iter_mut().zip(&self.pre_grad).for_each(|(b, g)| *b += g);
    }
}

impl Pass {
    /// Decodes onto `error` and goes back to the activations; see [`reconstruct`].
    fn reconstruct(
        &mut self,
        params: &Parameters,
        ends: &[usize],
        factors: &[f32],
        error: &mut [f32],
    ) -> Vec<f64> {
        let decoder = Decoder { weights: &params.w_dec, d_out: params.d_out, ends, factors };
        reconstruct(&self.active, &decoder, error, &mut self.grads, &mut self.entry_grad)
    }

    /// Activations and their gradients, by latent.
    fn factors(&self, by_latent: &ByLatent) -> [Vec<f32>; 2] {
        [by_latent.gather(self.active.values()), by_latent.gather(&self.entry_grad)]
    }
}

impl Objective for TopK {
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Gradients,
    ) -> Losses {
        let rows = batch.rows(params);
        self.encode(params, &batch);
        let (mse, weighted) = self.decode(params, &batch);
        let by_latent = self.main.active.by_latent(params.d_sae);
        let dead = self.dead(rows, &by_latent, firing);
        let aux = if dead.is_empty() { 0.0 } else { self.revive(params, &batch, &dead) };
        let revived = (!dead.is_empty()).then(|| self.revival.active.by_latent(params.d_sae));
        self.add_gradients(params, batch.input, (&by_latent, revived.as_ref()), grads);
        // The auxiliary reconstruction has no b_dec; every prefix has, and their gradients are
        // all in the first group's.
        add_output_gradients(params, &batch, &self.main.grads, &self.pre_grad, grads);
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
