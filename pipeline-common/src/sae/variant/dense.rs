//! Objectives whose activations are a function of each pre-activation alone.
//!
//! Products are made in blocks of rows, so that no `[batch, d_sae]` array exists. A block with many
//! active latents takes dense products throughout; one with few keeps only the latents that have
//! a gradient, and costs little more than the encoder's product. Which way a block goes depends on
//! its own numbers, so that a resumed training goes the same ways.

use rayon::prelude::*;

use super::{
    Batch, Firing, Losses, Objective, add_output_gradients,
    penalty::{LatentSums, Sums, add_norm_gradient},
    squared_error, without_latents,
};
use crate::{
    kernels::{
        product::{Matrix, Write, product},
        sparse::{
            SparseRows,
            gradients::{RowSums, Tiles},
            reconstruct::{Decoder, reconstruct},
        },
        vector::simd,
    },
    sae::{Parameters, encode::Encoder, gradients::Gradients},
};

/// A block is sparse where at most one in so many of its entries has a gradient: the sparse loops
/// reach about an eighth of a product's rate.
pub const SPARSE: usize = 10;
/// Latents that are passed over together where none has a gradient.
const CHUNK: usize = 16;
/// Latents that one task sums over the rows of a block.
const COLUMNS: usize = 256;

/// One latent on one row. There are `C` reconstructions, each with activations of its own.
#[derive(Clone, Copy, Debug)]
pub struct Entry<const C: usize> {
    /// The latent.
    pub latent: usize,
    /// Its pre-activation, without the bias.
    pub a: f32,
    /// Its activations.
    pub f: [f32; C],
    /// The gradients of the squared errors with respect to them.
    pub g: [f32; C],
}

/// The gradients of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EntryGrad {
    /// With respect to the pre-activation.
    pub pre: f32,
    /// With respect to the latent's own numbers: b_enc, threshold, r_mag, b_mag.
    pub own: [f32; 4],
}

/// An activation with a sparsity penalty, entry by entry. The first of its `C` reconstructions is
/// the SAE's own, the others' errors are auxiliary losses.
pub trait Elementwise<const C: usize>: Send + Sync {
    /// Called once a step, before anything else.
    fn prepare(&mut self, _params: &Parameters, _step: u64) {}

    /// The activations of latent `l` at pre-activation `a`, without the bias.
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> [f32; C];

    /// Latent `l` has neither an activation nor a gradient where its pre-activation, the bias
    /// included, is at or below this.
    fn silent(&self, _params: &Parameters, _l: usize) -> f32 {
        0.0
    }

    /// Whether the threshold has a gradient at pre-activation `a`.
    fn concerns(&self, _params: &Parameters, _l: usize, _a: f32) -> bool {
        false
    }

    /// The entry's gradients, the penalty's included; `per_row` is λ / rows.
    fn backward(&self, params: &Parameters, entry: Entry<C>, per_row: f32) -> EntryGrad;

    /// The penalty of an active entry, before the mean over the batch and without λ; and its
    /// derivative with respect to the latent's decoder norm.
    fn penalty(&self, params: &Parameters, l: usize, f: [f32; C]) -> (f32, f32);

    /// Whether the decoder and b_dec take part in reconstruction `c` as constants.
    fn is_detached(&self, c: usize) -> bool {
        c > 0
    }

    /// The penalty of the batch with its coefficient, and what it adds to the gradients beyond
    /// those of entries.
    fn finish(
        &mut self,
        params: &Parameters,
        sums: &Sums,
        lambda: f64,
        grads: &mut Gradients,
    ) -> f64 {
        add_norm_gradient(params, sums, lambda / sums.rows as f64, grads);
        lambda * sums.mean(|latent| latent.penalty)
    }

    /// As [`Objective::memory`].
    fn memory(&self) -> Vec<f64> {
        vec![]
    }

    /// As [`Objective::recall`].
    fn recall(&mut self, _memory: &[f64]) {}
}

/// The objective of an [`Elementwise`] activation.
#[derive(Debug)]
pub struct Dense<E, const C: usize> {
    activation: E,
    coefficient: f64,
    /// [`SPARSE`], but for tests.
    pub(super) one_in: usize,
    encoder: Encoder,
    /// [`Elementwise::silent`] of each latent.
    silent: Vec<f32>,
    /// Pre-activations of a block, `[rows, d_sae]`.
    pre: Vec<f32>,
    /// Activations of a dense block, then their gradients.
    acts: [Vec<f32>; C],
    grads: [Vec<f32>; C],
    /// Errors of all rows, then the outputs' gradients, `[rows, d_out]`.
    outputs: [Vec<f32>; C],
    sparse: Sparse<C>,
}

/// The entries of all sparse blocks.
#[derive(Debug)]
struct Sparse<const C: usize> {
    /// The same latents for each reconstruction; rows of dense blocks are empty.
    rows: [SparseRows; C],
    /// Pre-activations without bias.
    a: Vec<f32>,
    /// Gradients of the activations.
    grads: [Vec<f32>; C],
    /// Those of one block, and the gradients of its outputs.
    of_block: [Vec<f32>; 2],
    output_tiles: [Tiles; C],
    input_tiles: Tiles,
}

/// Whether a pre-activation with its bias is above what keeps its latent silent.
#[inline(always)]
fn any_speaks(row: &[f32], (biases, silent): (&[f32], &[f32])) -> bool {
    let mut any = false;
    for ((a, bias), silent) in row.iter().zip(biases).zip(silent) {
        any |= a + bias > *silent;
    }
    any
}

/// Entries of one row: latents, pre-activations, activations.
type Found<const C: usize> = (Vec<u32>, Vec<f32>, [Vec<f32>; C]);

impl<E: Elementwise<C>, const C: usize> Dense<E, C> {
    /// `coefficient` is λ, the weight of the penalty.
    pub fn new(activation: E, coefficient: f64) -> Self {
        let empty = || std::array::from_fn(|_| vec![]);
        let rows = std::array::from_fn(|_| SparseRows::default());
        Self {
            activation,
            coefficient,
            one_in: SPARSE,
            encoder: Encoder::default(),
            silent: vec![],
            pre: vec![],
            acts: empty(),
            grads: empty(),
            outputs: empty(),
            sparse: Sparse {
                rows,
                a: vec![],
                grads: empty(),
                of_block: [vec![], vec![]],
                output_tiles: std::array::from_fn(|_| Tiles::default()),
                input_tiles: Tiles::default(),
            },
        }
    }

    /// One block of rows, from `first` on, whose pre-activations are in `self.pre`: its errors and
    /// the gradients of the outputs, and of a dense block those of all parameters. Returns the
    /// squared errors' shares.
    fn block(
        &mut self,
        params: &Parameters,
        batch: &Batch<'_>,
        first: usize,
        (sums, grads, per_row): (&mut Sums, &mut Gradients, f32),
    ) -> [f64; C] {
        let (d_in, d_out, d_sae) = (params.d_in, params.d_out, params.d_sae);
        let rows = self.pre.len() / d_sae;
        let share = rows as f64 / sums.rows as f64;
        let output = first * d_out..(first + rows) * d_out;
        if self.is_sparse(params) {
            let kept = self.keep_entries(params);
            let factors = [(2.0 / sums.rows as f64) as f32];
            let decoder = Decoder { weights: &params.w_dec, d_out, ends: &[], factors: &factors };
            return std::array::from_fn(|c| {
                let output = &mut self.outputs[c][output.clone()];
                self.sparse.errors(c, &kept[c], &decoder, output) / sums.rows as f64
            });
        }
        self.sparse.push_empty(rows);
        self.activate(params);
        let decoder = Matrix::new(&params.w_dec, d_sae, d_out);
        let errors = std::array::from_fn(|c| {
            let acts = Matrix::new(&self.acts[c], rows, d_sae);
            let output = &mut self.outputs[c][output.clone()];
            product(acts, decoder, output, Write::Add);
            let squared = share * squared_error(output, d_out, share);
            let output = Matrix::new(output, rows, d_out);
            self.grads[c].resize(rows * d_sae, 0.0);
            product(output, decoder.t(), &mut self.grads[c], Write::Replace);
            if !self.activation.is_detached(c) {
                product(acts.t(), output, &mut grads.dense().w_dec, Write::Add);
            }
            squared
        });
        self.dense_backward(params, per_row, &mut sums.latents);
        let pre_grad = Matrix::new(&self.pre, rows, d_sae);
        let input = Matrix::new(&batch.input[first * d_in..][..rows * d_in], rows, d_in);
        product(pre_grad.t(), input, &mut grads.dense().w_enc, Write::Add);
        errors
    }

    #[inline(always)]
    fn has_gradient(&self, params: &Parameters, l: usize, a: f32) -> bool {
        self.activation.activate(params, l, a).iter().any(|f| *f != 0.0)
            || self.activation.concerns(params, l, a)
    }

    fn is_sparse(&self, params: &Parameters) -> bool {
        let of_row = |row: &[f32]| {
            simd(
                #[inline(always)]
                || {
                    let latents = params.b_enc.iter().zip(&self.silent);
                    let mut entries = 0_u32;
                    for (a, (bias, silent)) in row.iter().zip(latents) {
                        entries += u32::from(a + bias > *silent);
                    }
                    entries as usize
                },
            )
        };
        let entries: usize = self.pre.par_chunks(params.d_sae).map(of_row).sum();
        entries.saturating_mul(self.one_in) <= self.pre.len()
    }

    /// Keeps the entries of a sparse block; returns those of this block.
    fn keep_entries(&mut self, params: &Parameters) -> [SparseRows; C] {
        let of_row = |row: &[f32]| {
            let mut found: Found<C> = (vec![], vec![], std::array::from_fn(|_| vec![]));
            let latents = params.b_enc.chunks(CHUNK).zip(self.silent.chunks(CHUNK));
            simd(
                #[inline(always)]
                || {
                    for (n, (row, latents)) in row.chunks(CHUNK).zip(latents).enumerate() {
                        if !any_speaks(row, latents) {
                            continue;
                        }
                        for (i, a) in row.iter().enumerate() {
                            let l = n * CHUNK + i;
                            if self.has_gradient(params, l, *a) {
                                found.0.push(l as u32);
                                found.1.push(*a);
                                let acts = self.activation.activate(params, l, *a);
                                for (all, f) in found.2.iter_mut().zip(acts) {
                                    all.push(f);
                                }
                            }
                        }
                    }
                },
            );
            found
        };
        let found: Vec<_> = self.pre.par_chunks(params.d_sae).map(of_row).collect();
        let mut block: [SparseRows; C] = std::array::from_fn(|_| SparseRows::default());
        block.iter_mut().for_each(SparseRows::clear);
        for (index, a, acts) in &found {
            self.sparse.a.extend_from_slice(a);
            for (c, acts) in acts.iter().enumerate() {
                self.sparse.rows[c].push(index, acts);
                block[c].push(index, acts);
            }
        }
        block
    }

    fn activate(&mut self, params: &Parameters) {
        let (activation, d_sae, pre) = (&self.activation, params.d_sae, &self.pre);
        for (c, acts) in self.acts.iter_mut().enumerate() {
            acts.resize(pre.len(), 0.0);
            acts.par_chunks_mut(d_sae).zip(pre.par_chunks(d_sae)).for_each(|(acts, pre)| {
                for (l, (f, a)) in acts.iter_mut().zip(pre).enumerate() {
                    *f = activation.activate(params, l, *a)[c];
                }
            });
        }
    }

    /// Turns `self.pre` into the pre-activations' gradients, and sums over the rows of the block,
    /// each latent by one task and rows in order.
    fn dense_backward(&mut self, params: &Parameters, per_row: f32, sums: &mut [LatentSums]) {
        let d_sae = params.d_sae;
        let (activation, acts, grads) = (&self.activation, &self.acts, &self.grads);
        let columns = columns_mut(&mut self.pre, d_sae).into_par_iter();
        columns.zip(sums.par_chunks_mut(COLUMNS)).enumerate().for_each(|(n, (columns, sums))| {
            for (row, pre) in columns.into_iter().enumerate() {
                for (i, (a, sums)) in pre.iter_mut().zip(sums.iter_mut()).enumerate() {
                    let latent = n * COLUMNS + i;
                    let at = row * d_sae + latent;
                    let f = std::array::from_fn(|c| acts[c][at]);
                    let g = std::array::from_fn(|c| grads[c][at]);
                    *a = sums.add(activation, params, Entry { latent, a: *a, f, g }, per_row);
                }
            }
        });
    }

    /// The gradients of all sparse blocks' entries.
    fn sparse_backward(
        &mut self,
        params: &Parameters,
        batch: &Batch<'_>,
        (sums, grads, per_row): (&mut Sums, &mut Gradients, f32),
    ) {
        let Sparse { rows, a, grads: entry_grads, output_tiles, input_tiles, .. } =
            &mut self.sparse;
        if rows[0].active() == 0 {
            return;
        }
        let activation = &self.activation;
        let by_latent = rows[0].by_latent(params.d_sae);
        let mut pre_grads = vec![0.0; a.len()];
        let latents = by_latent.cut(&mut pre_grads).into_par_iter().zip(&mut sums.latents);
        latents.enumerate().for_each(|(latent, (pre_grads, sums))| {
            for ((_, slot), pre_grad) in by_latent.of(latent).iter().zip(pre_grads) {
                let slot = *slot as usize;
                let f = std::array::from_fn(|c| rows[c].values()[slot]);
                let g = std::array::from_fn(|c| entry_grads[c][slot]);
                *pre_grad =
                    sums.add(activation, params, Entry { latent, a: a[slot], f, g }, per_row);
            }
        });
        input_tiles.load(batch.input, params.d_in);
        let mut of_decoder = vec![];
        for (c, tiles) in
            output_tiles.iter_mut().enumerate().filter(|(c, _)| !activation.is_detached(*c))
        {
            tiles.load(&self.outputs[c], params.d_out);
            of_decoder.push((by_latent.gather(rows[c].values()), &*tiles));
        }
        let by_latent = &by_latent;
        let of_decoder: Vec<_> = of_decoder
            .iter()
            .map(|(factors, matrix)| RowSums { by_latent, factors, matrix, ends: &[] })
            .collect();
        let encoder = RowSums { by_latent, factors: &pre_grads, matrix: input_tiles, ends: &[] };
        grads.add(&of_decoder, &[encoder]);
    }
}

impl<E: Elementwise<C>, const C: usize> Dense<E, C> {
    fn output_gradients(
        &mut self,
        params: &Parameters,
        batch: &Batch<'_>,
        sums: &Sums,
        grads: &mut Gradients,
    ) {
        let (own, auxiliary) = self.outputs.split_at_mut(1);
        for (c, output) in auxiliary.iter().enumerate() {
            if !self.activation.is_detached(c + 1) {
                own[0].par_iter_mut().zip(output).for_each(|(sum, g)| *sum += g);
            }
        }
        let pre_grad: Vec<f32> = sums.latents.iter().map(|latent| latent.pre as f32).collect();
        add_output_gradients(params, batch, &own[0], &pre_grad, grads);
    }
}

impl<const C: usize> Sparse<C> {
    fn clear(&mut self) {
        self.rows.iter_mut().for_each(SparseRows::clear);
        self.a.clear();
        self.grads.iter_mut().for_each(Vec::clear);
    }

    /// Turns the outputs of a block without latents, less the target, into the outputs' gradients,
    /// and keeps those of the activations; returns the sum of squared errors.
    fn errors(
        &mut self,
        c: usize,
        kept: &SparseRows,
        decoder: &Decoder<'_>,
        output: &mut [f32],
    ) -> f64 {
        let [entry_grads, grads] = &mut self.of_block;
        let squared = reconstruct(kept, decoder, output, grads, entry_grads);
        output.copy_from_slice(grads);
        self.grads[c].extend_from_slice(entry_grads);
        squared.iter().sum()
    }

    /// The rows of a dense block.
    fn push_empty(&mut self, n: usize) {
        self.rows.iter_mut().for_each(|rows| (0..n).for_each(|_| rows.push(&[], &[])));
    }
}

/// The columns of row-major `[rows, width]`, [`COLUMNS`] together, row by row.
fn columns_mut(matrix: &mut [f32], width: usize) -> Vec<Vec<&mut [f32]>> {
    let mut columns: Vec<Vec<&mut [f32]>> = vec![];
    columns.resize_with(width.div_ceil(COLUMNS), Vec::new);
    for row in matrix.chunks_exact_mut(width) {
        row.chunks_mut(COLUMNS).zip(&mut columns).for_each(|(part, all)| all.push(part));
    }
    columns
}

impl<E: Elementwise<C>, const C: usize> Objective for Dense<E, C> {
    fn accumulate(
        &mut self,
        params: &Parameters,
        batch: Batch<'_>,
        firing: &mut Firing,
        grads: &mut Gradients,
    ) -> Losses {
        let mut sums = Sums::new(batch.rows(params), params.d_sae);
        let lambda = self.coefficient * batch.sparsity;
        let per_row = (lambda / sums.rows as f64) as f32;
        self.activation.prepare(params, batch.step);
        self.silent = (0..params.d_sae).map(|l| self.activation.silent(params, l)).collect();
        self.sparse.clear();
        self.outputs.iter_mut().for_each(|output| without_latents(params, &batch, output));
        let (mut errors, mut encoder) = ([0.0; C], std::mem::take(&mut self.encoder));
        encoder.load_for(&params.w_enc, params.d_in, batch.precision, batch.input);
        encoder.blocks(batch.input, |first, block| {
            std::mem::swap(&mut self.pre, block);
            let of_block = self.block(params, &batch, first, (&mut sums, grads, per_row));
            errors.iter_mut().zip(of_block).for_each(|(sum, error)| *sum += error);
            std::mem::swap(&mut self.pre, block);
        });
        self.encoder = encoder;
        self.sparse_backward(params, &batch, (&mut sums, grads, per_row));
        let sparsity = self.activation.finish(params, &sums, lambda, grads);
        sums.add_to(grads);
        self.output_gradients(params, &batch, &sums, grads);
        firing.update(sums.rows, |l| sums.latents[l].fired > 0);
        let (mse, aux) = (errors[0], errors[1..].iter().sum::<f64>());
        let (l0, l1) = (sums.l0(), sums.mean(|latent| latent.acts));
        Losses { mse, sparsity, aux, total: mse + sparsity + aux, l0, l1 }
    }

    fn memory(&self) -> Vec<f64> {
        self.activation.memory()
    }

    fn recall(&mut self, memory: &[f64]) {
        self.activation.recall(memory);
    }
}
