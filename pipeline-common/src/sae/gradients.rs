//! The gradients of a step. A latent that no row used costs nothing here.
//!
//! With a small batch most latents are inactive, and clearing, projecting and summing their rows
//! of both matrices would cost as much as the step itself.

use rayon::prelude::*;

use super::{
    Parameters,
    parameters::{Shape, squared},
};
use crate::kernels::{
    product::Write,
    sparse::gradients::RowSums,
    vector::{axpy, dot, simd, squared_norm},
};

/// Tasks for each thread, so that none waits long for the last. The latents of a task go through
/// each tile of the rows together: the more, the oftener a row is used once it is in cache.
const TASKS: usize = 4;
/// Elements of a tensor without rows that one task sums.
const STRETCH: usize = 4096;

/// Gradients of all parameters.
#[derive(Clone, Debug)]
pub struct Gradients {
    all: Parameters,
    /// Whether a latent's rows of both matrices hold a gradient; the others' hold anything.
    touched: Vec<bool>,
}

/// One latent's rows of both matrices.
#[derive(Debug)]
pub struct LatentGradients<'a> {
    dec: &'a mut [f32],
    enc: &'a mut [f32],
    touched: &'a mut bool,
}

impl<'a> LatentGradients<'a> {
    /// The decoder's row, `[d_out]`, and the encoder's, `[d_in]`, to be added to.
    pub fn rows(self) -> (&'a mut [f32], &'a mut [f32]) {
        let (dec, enc, write) = self.take();
        if write == Write::Replace {
            dec.fill(0.0);
            enc.fill(0.0);
        }
        (dec, enc)
    }

    /// The same rows, and whether they are to be added to or hold nothing yet.
    fn take(self) -> (&'a mut [f32], &'a mut [f32], Write) {
        let write = if *self.touched { Write::Add } else { Write::Replace };
        *self.touched = true;
        (self.dec, self.enc, write)
    }
}

/// Adds to latents' rows of one matrix what `sums` are, tile by tile.
fn add_sums(sums: &[RowSums<'_>], mut rows: Vec<(usize, &mut [f32], Write)>) {
    if sums.is_empty() {
        let fresh = rows.iter_mut().filter(|(.., write)| *write == Write::Replace);
        fresh.for_each(|(_, row, _)| row.fill(0.0));
    }
    for sums in sums {
        for tile in 0..sums.matrix.count() {
            rows.iter_mut().for_each(|(latent, row, write)| sums.add(*latent, tile, row, *write));
        }
        rows.iter_mut().for_each(|(.., write)| *write = Write::Add);
    }
}

impl Gradients {
    /// None yet.
    pub fn new(shape: Shape) -> Self {
        Self { all: Parameters::zeros(shape), touched: vec![false; shape.d_sae] }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.touched.fill(false);
        let Parameters { b_enc, b_dec, threshold, r_mag, b_mag, w_skip, .. } = &mut self.all;
        for tensor in [b_enc, b_dec, threshold, r_mag, b_mag, w_skip] {
            tensor.fill(0.0);
        }
    }

    /// Each latent's rows of both matrices.
    pub fn latents(&mut self) -> impl IndexedParallelIterator<Item = LatentGradients<'_>> {
        let Parameters { d_in, d_out, w_enc, w_dec, .. } = &mut self.all;
        let rows = w_dec.par_chunks_mut(*d_out).zip(w_enc.par_chunks_mut(*d_in));
        rows.zip(&mut self.touched).map(|((dec, enc), touched)| LatentGradients {
            dec,
            enc,
            touched,
        })
    }

    /// Adds sums over active rows to the latents' rows of the decoder and of the encoder.
    pub fn add(&mut self, decoder: &[RowSums<'_>], encoder: &[RowSums<'_>]) {
        let fires = |l: usize| decoder.iter().chain(encoder).any(|s| s.by_latent.fires(l));
        let together = self.touched.len().div_ceil(TASKS * rayon::current_num_threads());
        self.latents().enumerate().chunks(together.max(1)).for_each(|chunk| {
            let latents = chunk.into_iter().filter(|(latent, _)| fires(*latent));
            let rows = latents.map(|(latent, grads)| {
                let (dec, enc, write) = grads.take();
                ((latent, dec, write), (latent, enc, write))
            });
            let (dec, enc): (Vec<_>, Vec<_>) = rows.unzip();
            add_sums(decoder, dec);
            add_sums(encoder, enc);
        });
    }

    /// All tensors, every latent's rows included.
    pub fn dense(&mut self) -> &mut Parameters {
        self.latents().for_each(|latent| {
            latent.rows();
        });
        &mut self.all
    }

    /// The tensors other than the two matrices.
    pub fn small(&mut self) -> Small<'_> {
        let Parameters { b_enc, b_dec, threshold, r_mag, b_mag, w_skip, .. } = &mut self.all;
        Small { own: [b_enc, threshold, r_mag, b_mag], b_dec, w_skip }
    }

    /// The tensors, in which rows of latents that are not [`Self::is_touched`] hold anything.
    pub fn tensors(&self) -> &Parameters {
        &self.all
    }

    /// Whether a latent's rows of both matrices hold a gradient.
    #[inline(always)]
    pub fn is_touched(&self, latent: usize) -> bool {
        self.touched[latent]
    }

    /// The global squared norm, after removing from the decoder's gradient what lies along each
    /// latent's row where `decoder`, `[d_sae, d_out]`, is given: rows of constant norm cannot go
    /// there.
    pub fn squared_norm(&mut self, decoder: Option<&[f32]>) -> f64 {
        let d_out = self.all.d_out;
        let of_latent =
            |(latent, LatentGradients { dec, enc, touched }): (usize, LatentGradients<'_>)| {
                if !*touched {
                    return 0.0;
                }
                simd(
                    #[inline(always)]
                    || {
                        if let Some(decoder) = decoder {
                            remove_along(&decoder[latent * d_out..][..d_out], dec);
                        }
                        squared_norm(dec) + squared_norm(enc)
                    },
                )
            };
        let latents: Vec<f64> = self.latents().enumerate().map(of_latent).collect();
        let Small { own: [b_enc, threshold, r_mag, b_mag], b_dec, w_skip } = self.small();
        let of_tensor = |t: &mut Vec<f32>| -> f64 {
            let parts: Vec<f64> = t.par_chunks(STRETCH).map(squared).collect();
            parts.iter().sum()
        };
        let others = [b_enc, threshold, r_mag, b_mag, b_dec, w_skip].map(of_tensor);
        // Fixed parts, added in order.
        latents.iter().chain(&others).sum()
    }
}

/// The tensors other than the two matrices.
#[derive(Debug)]
pub struct Small<'a> {
    /// b_enc, threshold, r_mag, b_mag, `[d_sae]` each or empty.
    pub own: [&'a mut Vec<f32>; 4],
    /// `[d_out]`.
    pub b_dec: &'a mut Vec<f32>,
    /// `[d_out, d_in]` or empty.
    pub w_skip: &'a mut Vec<f32>,
}

#[inline(always)]
fn remove_along(row: &[f32], grad: &mut [f32]) {
    let along = dot(grad, row) / dot(row, row).max(f32::MIN_POSITIVE);
    axpy(-along, row, grad);
}
