//! Everything that training learns; gradients and Adam moments have the same shape.

/// The tensors of an SAE, all f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Width of the input.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Encoder, `[d_sae, d_in]`: the transpose of SAELens' `W_enc`.
    pub w_enc: Vec<f32>,
    /// Encoder bias, `[d_sae]`.
    pub b_enc: Vec<f32>,
    /// Decoder, `[d_sae, d_in]`: a latent's row is its direction.
    pub w_dec: Vec<f32>,
    /// Decoder bias, `[d_in]`.
    pub b_dec: Vec<f32>,
    /// JumpReLU's thresholds, `[d_sae]`, or empty.
    pub threshold: Vec<f32>,
}

/// Names of the tensors, in the order of [`Parameters::tensors`].
pub const NAMES: [&str; 5] = ["w_enc", "b_enc", "w_dec", "b_dec", "threshold"];

impl Parameters {
    /// All zero; `threshold` has `d_sae` elements or none.
    pub fn zeros(d_in: usize, d_sae: usize, threshold: bool) -> Self {
        Self {
            d_in,
            d_sae,
            w_enc: vec![0.0; d_sae * d_in],
            b_enc: vec![0.0; d_sae],
            w_dec: vec![0.0; d_sae * d_in],
            b_dec: vec![0.0; d_in],
            threshold: vec![0.0; if threshold { d_sae } else { 0 }],
        }
    }

    /// All zero, of the same shape.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Self::zeros(self.d_in, self.d_sae, !self.threshold.is_empty())
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        self.tensors_mut().into_iter().for_each(|t| t.fill(0.0));
    }

    /// The tensors in the order of [`NAMES`].
    pub fn tensors(&self) -> [&[f32]; 5] {
        [&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec, &self.threshold]
    }

    /// The tensors in the order of [`NAMES`], for writing.
    pub fn tensors_mut(&mut self) -> [&mut Vec<f32>; 5] {
        [&mut self.w_enc, &mut self.b_enc, &mut self.w_dec, &mut self.b_dec, &mut self.threshold]
    }

    /// Euclidean norm of every decoder row, `[d_sae]`.
    pub fn decoder_norms(&self) -> Vec<f32> {
        self.w_dec.chunks_exact(self.d_in).map(norm).collect()
    }
}

/// Euclidean norm, summed in f64.
pub fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32
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
