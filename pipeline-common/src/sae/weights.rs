//! A trained SAE: encode and decode.

use rayon::prelude::*;

use super::{Parameters, encode::Encoder};
use crate::kernels::sparse::{SparseRows, decode_add};

/// Which pre-activations count as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The k largest of a row, if positive.
    TopK {
        /// Active latents a row.
        k: usize,
    },
    /// Those above the latent's threshold.
    JumpRelu,
    /// The positive ones.
    Relu,
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TopK { k } => write!(f, "topk, k = {k}"),
            Self::JumpRelu => f.write_str("jumprelu"),
            Self::Relu => f.write_str("standard"),
        }
    }
}

/// Weights and activation of an SAE, as later stages use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sae {
    /// The tensors.
    pub params: Parameters,
    /// The activation.
    pub activation: Activation,
    /// Whether b_dec is subtracted from the input before encoding.
    pub subtract_b_dec: bool,
}

impl Sae {
    /// An SAE that subtracts b_dec from its input, as all that are trained here do.
    pub fn new(params: Parameters, activation: Activation) -> Self {
        Self { params, activation, subtract_b_dec: true }
    }

    /// Folds the scale of the training inputs into the weights, for inputs as they come.
    ///
    /// Trained on `s·x`. Latents become `f/s`, so that decoder rows keep norm 1 and activations
    /// are in units of the model: biases and thresholds are divided by `s`, matrices stay
    /// (`scale_biases` of `dictionary_learning`).
    #[must_use]
    pub fn folded(mut self, scale: f32) -> Self {
        let p = &mut self.params;
        for tensor in [&mut p.b_enc, &mut p.b_dec, &mut p.threshold] {
            tensor.iter_mut().for_each(|x| *x /= scale);
        }
        self
    }

    /// The active latents of `rows`, `[n, d_in]` row-major.
    ///
    /// Memory: for activations without a fixed k, room for every latent of every row; encode a
    /// few thousand rows at a time.
    pub fn encode(&self, rows: &[f32], threads: usize) -> SparseRows {
        let p = &self.params;
        let centred;
        let input = if self.subtract_b_dec {
            centred = minus(rows, &p.b_dec);
            &centred
        } else {
            rows
        };
        let encoder =
            Encoder { w_enc: &p.w_enc, b_enc: &p.b_enc, norms: None, d_in: p.d_in, threads };
        let (mut out, mut block) = (SparseRows::default(), vec![]);
        match self.activation {
            Activation::TopK { k } => encoder.top_k(input, k, 0.0, &mut block, &mut out),
            Activation::JumpRelu => encoder.above(input, &p.threshold, &mut block, &mut out),
            Activation::Relu => encoder.above(input, &vec![0.0; p.d_sae], &mut block, &mut out),
        }
        out
    }

    /// The reconstruction of encoded rows, `[n, d_in]` row-major.
    pub fn decode(&self, latents: &SparseRows) -> Vec<f32> {
        let p = &self.params;
        let mut out = p.b_dec.repeat(latents.rows());
        decode_add(latents, &p.w_dec, p.d_in, &mut out);
        out
    }
}

fn minus(rows: &[f32], b: &[f32]) -> Vec<f32> {
    let mut out = rows.to_vec();
    out.par_chunks_mut(b.len()).for_each(|row| row.iter_mut().zip(b).for_each(|(x, b)| *x -= b));
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sae::random::{Normal, Purpose};

    /// A random SAE with unit decoder rows and lively biases.
    pub(crate) fn random_sae(d_in: usize, d_sae: usize, activation: Activation) -> Sae {
        let mut params = Parameters::zeros(d_in, d_sae, activation == Activation::JumpRelu);
        let mut normal = Normal::new(7, Purpose::Decoder);
        params.tensors_mut().into_iter().for_each(|t| normal.fill(t));
        params.threshold.iter_mut().for_each(|t| *t = t.abs());
        for row in params.w_dec.chunks_exact_mut(d_in) {
            let norm = crate::sae::parameters::norm(row);
            row.iter_mut().for_each(|x| *x /= norm);
        }
        Sae::new(params, activation)
    }

    #[test]
    fn folding_the_scale_leaves_outputs_equal() {
        let (d_in, rows, scale) = (8, 20, 0.3_f32);
        for activation in [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu] {
            let trained = random_sae(d_in, 24, activation);
            let mut x = vec![0.0; rows * d_in];
            Normal::new(3, Purpose::Decoder).fill(&mut x);
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            let (before, folded) = (trained.encode(&scaled, 1), trained.clone().folded(scale));
            let after = folded.encode(&x, 1);
            for row in 0..rows {
                let ((i, f), (j, g)) = (before.row(row), after.row(row));
                assert_eq!(i, j, "{activation:?}");
                f.iter().zip(g).for_each(|(f, g)| assert!((f / scale - g).abs() < 1e-4));
            }
            let (a, b) = (trained.decode(&before), folded.decode(&after));
            a.iter().zip(b).for_each(|(a, b)| assert!((a / scale - b).abs() < 1e-4));
        }
    }

    #[test]
    fn decoding_adds_active_rows_to_the_bias() {
        let sae = random_sae(4, 6, Activation::Relu);
        let x = [0.5, -1.0, 2.0, 0.1];
        let latents = sae.encode(&x, 1);
        let (index, value) = latents.row(0);
        let p = &sae.params;
        for l in 0..6 {
            let centred: Vec<f32> = x.iter().zip(&p.b_dec).map(|(x, b)| x - b).collect();
            let pre: f32 =
                centred.iter().zip(&p.w_enc[l * 4..]).map(|(x, w)| x * w).sum::<f32>() + p.b_enc[l];
            match index.iter().position(|i| *i as usize == l) {
                Some(at) => assert!((value[at] - pre).abs() < 1e-5),
                None => assert!(pre <= 1e-6),
            }
        }
    }
}
