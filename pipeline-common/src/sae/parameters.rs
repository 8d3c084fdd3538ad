//! Everything that training learns; gradients and Adam moments have the same shape.

use crate::kernels::vector::{simd, squared_norm};

/// Sizes of an SAE, and which tensors it has beside the two matrices and their biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output: `d_in`, or that of a transcoder's target.
    pub d_out: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// JumpReLU: a threshold per latent.
    pub threshold: bool,
    /// Gated: magnitudes apart from the gate.
    pub gate: bool,
    /// Transcoder: a linear path around the latents.
    pub skip: bool,
}

impl Shape {
    /// An autoencoder without further tensors.
    pub fn autoencoder(d_in: usize, d_sae: usize) -> Self {
        Self { d_in, d_out: d_in, d_sae, threshold: false, gate: false, skip: false }
    }

    /// An autoencoder with a threshold per latent.
    pub fn jumprelu(d_in: usize, d_sae: usize) -> Self {
        Self { threshold: true, ..Self::autoencoder(d_in, d_sae) }
    }

    /// Numbers of all tensors.
    pub fn parameters(&self) -> u64 {
        let Self { d_in, d_out, d_sae, threshold, gate, skip } = *self;
        let own = 1 + usize::from(threshold) + 2 * usize::from(gate);
        let path = if skip { d_out * d_in } else { 0 };
        (d_sae * (d_in + d_out + own) + d_out + path) as u64
    }

    /// An autoencoder with magnitudes apart from the gate.
    pub fn gated(d_in: usize, d_sae: usize) -> Self {
        Self { gate: true, ..Self::autoencoder(d_in, d_sae) }
    }
}

/// The tensors of an SAE, all f32; those it does not have are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Encoder, `[d_sae, d_in]`: the transpose of SAELens' `W_enc`.
    pub w_enc: Vec<f32>,
    /// Encoder bias, `[d_sae]`; the gate's where there is one.
    pub b_enc: Vec<f32>,
    /// Decoder, `[d_sae, d_out]`: a latent's row is its direction.
    pub w_dec: Vec<f32>,
    /// Decoder bias, `[d_out]`.
    pub b_dec: Vec<f32>,
    /// JumpReLU's thresholds, `[d_sae]`.
    pub threshold: Vec<f32>,
    /// Logarithm of a gated latent's magnitude scale, `[d_sae]`.
    pub r_mag: Vec<f32>,
    /// Bias of a gated latent's magnitude, `[d_sae]`.
    pub b_mag: Vec<f32>,
    /// The path around the latents, `[d_out, d_in]`.
    pub w_skip: Vec<f32>,
}

/// Number of tensors, absent ones included.
pub const TENSORS: usize = 8;

/// Names of the tensors, in the order of [`Parameters::tensors`].
pub const NAMES: [&str; TENSORS] =
    ["w_enc", "b_enc", "w_dec", "b_dec", "threshold", "r_mag", "b_mag", "w_skip"];

impl Parameters {
    /// All zero.
    pub fn zeros(shape: Shape) -> Self {
        let Shape { d_in, d_out, d_sae, threshold, gate, skip } = shape;
        let zeros = |wanted: bool, n: usize| vec![0.0; if wanted { n } else { 0 }];
        Self {
            d_in,
            d_out,
            d_sae,
            w_enc: zeros(true, d_sae * d_in),
            b_enc: zeros(true, d_sae),
            w_dec: zeros(true, d_sae * d_out),
            b_dec: zeros(true, d_out),
            threshold: zeros(threshold, d_sae),
            r_mag: zeros(gate, d_sae),
            b_mag: zeros(gate, d_sae),
            w_skip: zeros(skip, d_out * d_in),
        }
    }

    /// All zero, of the same shape.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Self::zeros(self.shape())
    }

    /// The sizes, and which tensors there are.
    pub fn shape(&self) -> Shape {
        Shape {
            d_in: self.d_in,
            d_out: self.d_out,
            d_sae: self.d_sae,
            threshold: !self.threshold.is_empty(),
            gate: !self.r_mag.is_empty(),
            skip: !self.w_skip.is_empty(),
        }
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        self.tensors_mut().into_iter().for_each(|t| t.fill(0.0));
    }

    /// The tensors in the order of [`NAMES`].
    pub fn tensors(&self) -> [&[f32]; TENSORS] {
        [
            &self.w_enc,
            &self.b_enc,
            &self.w_dec,
            &self.b_dec,
            &self.threshold,
            &self.r_mag,
            &self.b_mag,
            &self.w_skip,
        ]
    }

    /// The tensors in the order of [`NAMES`], for writing.
    pub fn tensors_mut(&mut self) -> [&mut Vec<f32>; TENSORS] {
        [
            &mut self.w_enc,
            &mut self.b_enc,
            &mut self.w_dec,
            &mut self.b_dec,
            &mut self.threshold,
            &mut self.r_mag,
            &mut self.b_mag,
            &mut self.w_skip,
        ]
    }

    /// Euclidean norm of every decoder row, `[d_sae]`.
    pub fn decoder_norms(&self) -> Vec<f32> {
        self.w_dec.chunks_exact(self.d_out).map(norm).collect()
    }
}

/// Euclidean norm, summed in f64.
pub fn norm(row: &[f32]) -> f32 {
    squared(row).sqrt() as f32
}

/// Squared Euclidean norm, summed in f64.
pub fn squared(row: &[f32]) -> f64 {
    simd(
        #[inline(always)]
        || squared_norm(row),
    )
}

/// Swaps the axes of a row-major `[rows, cols]` matrix.
pub fn transpose(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.len()];
    for (r, row) in matrix.chunks_exact(cols).enumerate() {
        for (c, x) in row.iter().enumerate() {
            out[c * rows + r] = *x;
        }
    }
    out
}
