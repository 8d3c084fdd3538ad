//! TopK (Gao et al. 2024) with an auxiliary loss that revives dead latents.
//!
//! Only the encoder product is dense, and it is made in blocks of rows whose pre-activations are
//! reduced to k latents while they are in cache. Decoding and all gradients touch k latents a row.

use rayon::prelude::*;

use super::{Batch, Firing, Losses, Objective, add_b_dec_gradient, squared_error};
use crate::{
    kernels::{
        columns::row_variance,
        sparse::{Backward, ByLatent, SparseRows, decode_add, entry_gradients, latent_gradients},
        vector::simd,
    },
    sae::{Parameters, encode::Encoder},
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

/// Buffers of one set of active latents.
#[derive(Debug, Default)]
struct Pass {
    active: SparseRows,
    /// `Σ f W_dec - target`, then its gradient, `[rows, d_in]`.
    grad: Vec<f32>,
    entry_grad: Vec<f32>,
}

impl Pass {
    fn backward<'a>(&'a self, by_latent: &'a ByLatent, input: &'a [f32]) -> Backward<'a> {
        Backward {
            active: &self.active,
            by_latent,
            grad: &self.grad,
            entry_grad: &self.entry_grad,
            input,
        }
    }
}

/// The TopK objective.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    aux: Aux,
    /// Choose by activation times decoder norm (SAELens); the same latents for unit norms.
    rescale_by_decoder_norm: bool,
    main: Pass,
    revival: Pass,
    block: Vec<f32>,
}

impl TopK {
    /// `k` active latents a row.
    pub fn new(k: usize, aux: Aux, rescale_by_decoder_norm: bool) -> Self {
        let (main, revival) = (Pass::default(), Pass::default());
        Self { k, aux, rescale_by_decoder_norm, main, revival, block: vec![] }
    }

    /// The auxiliary loss and, in `self.revival`, its gradients; `dead` is not empty and
    /// `self.main.grad` holds the main gradient, `2/rows` times the error.
    fn revive(&mut self, params: &Parameters, batch: &Batch<'_>, dead: &[usize]) -> f64 {
        let d_in = params.d_in;
        let rows = batch.input.len() / d_in;
        let k = self.aux.k.min(dead.len());
        let gather = |t: &[f32], width: usize| -> Vec<f32> {
            dead.iter().flat_map(|l| t[l * width..(l + 1) * width].iter().copied()).collect()
        };
        let (w_enc, b_enc) = (gather(&params.w_enc, d_in), gather(&params.b_enc, 1));
        let encoder =
            Encoder { w_enc: &w_enc, b_enc: &b_enc, norms: None, d_in, threads: batch.threads };
        let floor = if self.aux.form == AuxForm::Normalised { 0.0 } else { f32::NEG_INFINITY };
        encoder.top_k(batch.input, k, floor, &mut self.block, &mut self.revival.active);
        self.revival.active.rename(dead);
        // The target is the residual x - x̂, detached: minus the main error.
        let residual = -(rows as f32) / 2.0;
        let target: Vec<f32> = self.main.grad.par_iter().map(|g| g * residual).collect();
        let weight = match self.aux.form {
            AuxForm::Normalised => 1.0 / row_variance(&target, d_in),
            AuxForm::Scaled => (dead.len() as f64 / self.aux.k as f64).min(1.0),
        };
        if !weight.is_finite() {
            self.revival.active.reset(0, 0);
            return 0.0;
        }
        let pass = &mut self.revival;
        pass.grad = target.into_par_iter().map(|t| -t).collect();
        decode_add(&pass.active, &params.w_dec, d_in, &mut pass.grad);
        let error = squared_error(&mut pass.grad, d_in, self.aux.coefficient * weight);
        entry_gradients(&pass.active, &params.w_dec, d_in, &pass.grad, &mut pass.entry_grad);
        error * weight
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
        let d_in = params.d_in;
        let rows = batch.input.len() / d_in;
        let norms = self.rescale_by_decoder_norm.then(|| params.decoder_norms());
        let encoder = Encoder {
            w_enc: &params.w_enc,
            b_enc: &params.b_enc,
            norms: norms.as_deref(),
            d_in,
            threads: batch.threads,
        };
        let pass = &mut self.main;
        encoder.top_k(batch.input, self.k, 0.0, &mut self.block, &mut pass.active);
        pass.grad.clear();
        pass.grad.par_extend(batch.input.par_iter().map(|x| -x));
        decode_add(&pass.active, &params.w_dec, d_in, &mut pass.grad);
        let mse = squared_error(&mut pass.grad, d_in, 1.0);
        entry_gradients(&pass.active, &params.w_dec, d_in, &pass.grad, &mut pass.entry_grad);
        let by_latent = pass.active.by_latent(params.d_sae);
        let dead_before = firing.dead();
        firing.update(rows, |latent| by_latent.fires(latent));
        let dead = match self.aux.form {
            _ if self.aux.coefficient == 0.0 => vec![],
            // A latent that fires in this very batch is alive; SAELens looks at it one step later.
            AuxForm::Normalised => firing.dead(),
            AuxForm::Scaled => dead_before,
        };
        let aux = if dead.is_empty() { 0.0 } else { self.revive(params, &batch, &dead) };
        let revived = (!dead.is_empty()).then(|| self.revival.active.by_latent(params.d_sae));
        self.add_gradients(&batch, &by_latent, revived.as_ref(), grads);
        add_b_dec_gradient(params, &self.main.grad, grads);
        let l1 = (0..rows)
            .map(|r| self.main.active.row(r).1.iter().sum::<f32>())
            .map(f64::from)
            .sum::<f64>();
        Losses {
            mse,
            aux,
            total: mse + self.aux.coefficient * aux,
            l0: self.main.active.active() as f64 / rows as f64,
            l1: l1 / rows as f64,
            ..Losses::default()
        }
    }
}

impl TopK {
    /// Gradients of both matrices and the encoder bias, latent by latent.
    fn add_gradients(
        &self,
        batch: &Batch<'_>,
        main: &ByLatent,
        revived: Option<&ByLatent>,
        grads: &mut Parameters,
    ) {
        let d_in = grads.d_in;
        let main = self.main.backward(main, batch.input);
        let revived = revived.map(|by_latent| self.revival.backward(by_latent, batch.input));
        grads
            .w_dec
            .par_chunks_mut(d_in)
            .zip(grads.w_enc.par_chunks_mut(d_in))
            .zip(&mut grads.b_enc)
            .enumerate()
            .for_each(|(latent, ((dec, enc), bias))| {
                simd(
                    #[inline(always)]
                    || {
                        latent_gradients(&main, latent, dec, enc, bias);
                        if let Some(revived) = &revived {
                            latent_gradients(revived, latent, dec, enc, bias);
                        }
                    },
                );
            });
    }
}
