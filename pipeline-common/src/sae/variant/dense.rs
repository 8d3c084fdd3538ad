//! Objectives whose activations are not sparse from the start: products over all latents, in
//! blocks of rows so that no `[batch, d_sae]` array exists.

use rayon::prelude::*;

use super::{Batch, Firing, Losses, Objective, add_b_dec_gradient, squared_error};
use crate::{
    kernels::product::{Matrix, Write, product},
    sae::Parameters,
};

/// Elements of one block buffer: 16 MiB each of three.
const BLOCK_ELEMENTS: usize = 4 << 20;

/// An elementwise activation with a sparsity penalty.
pub trait Elementwise: Send + Sync {
    /// The activation of latent `l` at pre-activation `a`.
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> f32;

    /// The penalty of one entry (before the mean over the batch) for pre-activation `a` and
    /// activation `f`.
    fn penalty(&self, l: usize, a: f32, f: f32) -> f32;

    /// Given the reconstruction's gradient `g` with respect to `f`: the gradients with respect to
    /// the pre-activation and to the latent's threshold. `per_row` is λ / rows.
    fn backward(&self, params: &Parameters, entry: Entry, per_row: f32) -> (f32, f32);

    /// Called once a step, before anything else.
    fn prepare(&mut self, _params: &Parameters) {}

    /// Adds the penalty's own gradient with respect to the decoder, given each latent's sum of
    /// activations over the batch.
    fn add_decoder_gradient(
        &self,
        _params: &Parameters,
        _sums: &[f32],
        _per_row: f32,
        _grads: &mut Parameters,
    ) {
    }
}

/// One latent on one row.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The latent.
    pub latent: usize,
    /// Its pre-activation.
    pub a: f32,
    /// Its activation.
    pub f: f32,
    /// The reconstruction's gradient with respect to `f`.
    pub g: f32,
}

/// The objective of an [`Elementwise`] activation.
#[derive(Debug)]
pub struct Dense<E> {
    activation: E,
    coefficient: f64,
    pre: Vec<f32>,
    acts: Vec<f32>,
    grad: Vec<f32>,
    output_grad: Vec<f32>,
}

/// Sums over the batch for each latent.
struct Sums {
    acts: Vec<f32>,
    fired: Vec<u32>,
    penalty: Vec<f64>,
}

impl<E: Elementwise> Dense<E> {
    /// `coefficient` is λ, the weight of the penalty.
    pub fn new(activation: E, coefficient: f64) -> Self {
        Self {
            activation,
            coefficient,
            pre: vec![],
            acts: vec![],
            grad: vec![],
            output_grad: vec![],
        }
    }

    /// Pre-activations and activations of a block of rows.
    fn encode(&mut self, params: &Parameters, input: &[f32], threads: usize) {
        let (d_in, d_sae) = (params.d_in, params.d_sae);
        let rows = input.len() / d_in;
        self.pre.resize(rows * d_sae, 0.0);
        self.acts.resize(rows * d_sae, 0.0);
        let weights = Matrix::new(&params.w_enc, d_sae, d_in).t();
        product(Matrix::new(input, rows, d_in), weights, &mut self.pre, Write::Replace, threads);
        let activation = &self.activation;
        self.pre.par_chunks_mut(d_sae).zip(self.acts.par_chunks_mut(d_sae)).for_each(
            |(pre, acts)| {
                for (l, (a, f)) in pre.iter_mut().zip(acts).enumerate() {
                    *a += params.b_enc[l];
                    *f = activation.activate(params, l, *a);
                }
            },
        );
    }

    /// Column sums of the block, each latent by one task and rows in order.
    fn count(&self, d_sae: usize, sums: &mut Sums) {
        let (pre, acts, activation) = (&self.pre, &self.acts, &self.activation);
        const COLUMNS: usize = 256;
        let columns = sums.acts.par_chunks_mut(COLUMNS).zip(sums.fired.par_chunks_mut(COLUMNS));
        columns.zip(sums.penalty.par_chunks_mut(COLUMNS)).enumerate().for_each(
            |(n, ((sum, fired), penalty))| {
                let first = n * COLUMNS;
                for (pre, acts) in pre.chunks_exact(d_sae).zip(acts.chunks_exact(d_sae)) {
                    for c in 0..sum.len() {
                        let (a, f) = (pre[first + c], acts[first + c]);
                        sum[c] += f;
                        fired[c] += u32::from(f > 0.0);
                        penalty[c] += f64::from(activation.penalty(first + c, a, f));
                    }
                }
            },
        );
    }

    /// Turns `self.grad` from the gradient of `f` into that of the pre-activations, and adds the
    /// thresholds' and biases' gradients.
    fn backward(&mut self, params: &Parameters, per_row: f32, grads: &mut Parameters) {
        let d_sae = params.d_sae;
        let activation = &self.activation;
        let rows = self.grad.par_chunks_mut(d_sae).zip(self.pre.par_chunks_mut(d_sae));
        rows.zip(self.acts.par_chunks(d_sae)).for_each(|((grad, pre), acts)| {
            for latent in 0..d_sae {
                let entry = Entry { latent, a: pre[latent], f: acts[latent], g: grad[latent] };
                // A pre-activation is not needed after this: its place takes θ's gradient.
                (grad[latent], pre[latent]) = activation.backward(params, entry, per_row);
            }
        });
        add_columns(&self.grad, d_sae, &mut grads.b_enc);
        if !grads.threshold.is_empty() {
            add_columns(&self.pre, d_sae, &mut grads.threshold);
        }
    }
}

impl<E: Elementwise> Objective for Dense<E> {
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Parameters,
    ) -> Losses {
        let (d_in, d_sae) = (params.d_in, params.d_sae);
        let total_rows = batch.input.len() / d_in;
        let lambda = self.coefficient * batch.sparsity;
        let per_row = (lambda / total_rows as f64) as f32;
        let mut sums =
            Sums { acts: vec![0.0; d_sae], fired: vec![0; d_sae], penalty: vec![0.0; d_sae] };
        let mut error = 0.0;
        let mut output_grad = std::mem::take(&mut self.output_grad);
        output_grad.clear();
        self.activation.prepare(params);
        for input in batch.input.chunks((BLOCK_ELEMENTS / d_sae).max(1) * d_in) {
            let rows = input.len() / d_in;
            self.encode(params, input, batch.threads);
            self.count(d_sae, &mut sums);
            let acts = Matrix::new(&self.acts, rows, d_sae);
            let decoder = Matrix::new(&params.w_dec, d_sae, d_in);
            let mut difference: Vec<f32> = input.iter().map(|x| -x).collect();
            product(acts, decoder, &mut difference, Write::Add, batch.threads);
            let share = rows as f64 / total_rows as f64;
            error += squared_error(&mut difference, d_in, share) * share;
            self.grad.resize(rows * d_sae, 0.0);
            let output = Matrix::new(&difference, rows, d_in);
            product(output, decoder.t(), &mut self.grad, Write::Replace, batch.threads);
            product(acts.t(), output, &mut grads.w_dec, Write::Add, batch.threads);
            self.backward(params, per_row, grads);
            let (pre_grad, input) =
                (Matrix::new(&self.grad, rows, d_sae), Matrix::new(input, rows, d_in));
            product(pre_grad.t(), input, &mut grads.w_enc, Write::Add, batch.threads);
            output_grad.extend_from_slice(&difference);
        }
        self.activation.add_decoder_gradient(params, &sums.acts, per_row, grads);
        add_b_dec_gradient(params, &output_grad, grads);
        self.output_grad = output_grad;
        firing.update(total_rows, |l| sums.fired[l] > 0);
        let mean = |sum: f64| sum / total_rows as f64;
        let sparsity = lambda * mean(sums.penalty.iter().sum());
        Losses {
            mse: error,
            sparsity,
            aux: 0.0,
            total: error + sparsity,
            l0: mean(sums.fired.iter().map(|n| f64::from(*n)).sum()),
            l1: mean(sums.acts.iter().map(|n| f64::from(*n)).sum()),
        }
    }
}

fn add_columns(rows: &[f32], width: usize, out: &mut [f32]) {
    let sums = crate::kernels::columns::column_sums(rows, width);
    out.iter_mut().zip(sums).for_each(|(o, s)| *o += s as f32);
}
