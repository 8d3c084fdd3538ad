//! A trained SAE: encode and decode.

use std::borrow::Cow;

use candle_core::DType;
use rayon::prelude::*;

use super::{
    Parameters, RowNorm,
    encode::{Encoder, Magnitude, Shift},
    rough::{Exact, Rough},
};
use crate::kernels::{
    product::{Matrix, Write, product},
    sparse::{SparseRows, reconstruct::decode_add},
};

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
    /// Those whose gate, the pre-activation, is positive; magnitudes have a scale and bias of
    /// their own.
    Gated,
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TopK { k } => write!(f, "topk, k = {k}"),
            Self::JumpRelu => f.write_str("jumprelu"),
            Self::Relu => f.write_str("standard"),
            Self::Gated => f.write_str("gated"),
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
    /// What each row goes through before that; only where d_out is d_in.
    pub row_norm: Option<RowNorm>,
}

impl Sae {
    /// An SAE that subtracts b_dec from its input, as all that are trained here do.
    pub fn new(params: Parameters, activation: Activation) -> Self {
        Self { params, activation, subtract_b_dec: true, row_norm: None }
    }

    /// Folds the scale of the training inputs into the weights, for inputs as they come.
    ///
    /// Trained on `s·x`. Latents become `f/s`, so that decoder rows keep norm 1 and activations
    /// are in units of the model: biases and thresholds are divided by `s`, matrices stay
    /// (`scale_biases` of `dictionary_learning`). A transcoder's target has a scale `t` of its
    /// own: its output bias is divided by `t`, and both paths to it are multiplied by `s/t`.
    #[must_use]
    pub fn folded(mut self, scale: f32, target_scale: f32) -> Self {
        let p = &mut self.params;
        for tensor in [&mut p.b_enc, &mut p.threshold, &mut p.b_mag] {
            tensor.iter_mut().for_each(|x| *x /= scale);
        }
        p.b_dec.iter_mut().for_each(|x| *x /= target_scale);
        if scale != target_scale {
            let ratio = scale / target_scale;
            for tensor in [&mut p.w_dec, &mut p.w_skip] {
                tensor.iter_mut().for_each(|x| *x *= ratio);
            }
        }
        self
    }

    /// The active latents of `rows`, `[n, d_in]` row-major.
    pub fn encode(&self, rows: &[f32]) -> SparseRows {
        let (p, input) = (&self.params, &*self.centred(rows));
        let mut encoder = Encoder::default();
        encoder.load_for(&p.w_enc, p.d_in, DType::F32, input);
        self.active(&mut encoder, input)
    }

    /// The encoder, for [`Self::encode_with`]: laying out the weights costs as much as a few rows.
    pub fn encoder(&self) -> Encoder {
        let p = &self.params;
        let mut encoder = Encoder::default();
        match self.activation {
            Activation::TopK { k } if Rough::pays(k, p.d_sae) => {
                encoder.rough = Some(Rough::new(&p.w_enc, p.d_in));
            }
            _ => encoder.load(&p.w_enc, p.d_in, DType::F32),
        }
        encoder
    }

    /// As [`Self::encode`], with what [`Self::encoder`] gave.
    pub fn encode_with(&self, encoder: &mut Encoder, rows: &[f32]) -> SparseRows {
        self.active(encoder, &self.centred(rows))
    }

    /// The active latents of what [`Self::centred`] gave, which the encoder has weights for.
    fn active(&self, encoder: &mut Encoder, input: &[f32]) -> SparseRows {
        let p = &self.params;
        let mut out = SparseRows::default();
        let shift = Shift { b_enc: &p.b_enc, norms: None };
        match self.activation {
            Activation::TopK { k } => match &mut encoder.rough {
                Some(rough) => {
                    let exact = Exact { w_enc: &p.w_enc, b_enc: &p.b_enc };
                    rough.top_k(exact, input, (k, 0.0), &mut out);
                }
                None => encoder.top_k(input, shift, (k, 0.0), &mut out),
            },
            Activation::JumpRelu => encoder.above(input, shift, &p.threshold, &mut out),
            Activation::Relu => encoder.above(input, shift, &vec![0.0; p.d_sae], &mut out),
            Activation::Gated => {
                let magnitude = Magnitude { r_mag: &p.r_mag, b_mag: &p.b_mag };
                encoder.gated(input, &p.b_enc, magnitude, &mut out);
            }
        }
        out
    }

    /// What the encoder's matrix is multiplied with.
    pub(super) fn centred<'a>(&self, rows: &'a [f32]) -> Cow<'a, [f32]> {
        let p = &self.params;
        let rows = match self.row_norm {
            Some(norm) => Cow::Owned(norm.apply(rows, p.d_in)),
            None => Cow::Borrowed(rows),
        };
        if self.subtract_b_dec { minus(&rows, &p.b_dec).into() } else { rows }
    }

    /// What latents alone reconstruct, `[n, d_out]` row-major; of standardised rows where
    /// [`Self::row_norm`] is set.
    pub fn decode(&self, latents: &SparseRows) -> Vec<f32> {
        let p = &self.params;
        let mut out = p.b_dec.repeat(latents.rows());
        decode_add(latents, &p.w_dec, p.d_out, &mut out);
        out
    }

    /// The output for `rows`, `[n, d_in]`, whose latents are given: [`Self::decode`], the path around
    /// the latents where there is one, and the rows' own mean and deviation where they are taken out.
    pub fn reconstruct(&self, rows: &[f32], latents: &SparseRows) -> Vec<f32> {
        let (p, mut out) = (&self.params, self.decode(latents));
        if !p.w_skip.is_empty() {
            let x = Matrix::new(rows, latents.rows(), p.d_in);
            let skip = Matrix::new(&p.w_skip, p.d_out, p.d_in).t();
            product(x, skip, &mut out, Write::Add);
        }
        if let Some(norm) = self.row_norm {
            norm.restore(rows, p.d_in, &mut out);
        }
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
    use crate::sae::{
        parameters::Shape,
        random::{Normal, Purpose},
    };

    /// A random SAE with unit decoder rows and lively biases.
    pub(crate) fn random_sae(d_in: usize, d_sae: usize, activation: Activation) -> Sae {
        let mut params = Parameters::zeros(Shape {
            threshold: activation == Activation::JumpRelu,
            gate: activation == Activation::Gated,
            ..Shape::autoencoder(d_in, d_sae)
        });
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
    fn trap_folding_the_scale_folds_the_threshold_too() {
        let (d_in, rows, scale) = (8, 20, 0.3_f32);
        for activation in
            [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu, Activation::Gated]
        {
            let trained = random_sae(d_in, 24, activation);
            let mut x = vec![0.0; rows * d_in];
            Normal::new(3, Purpose::Decoder).fill(&mut x);
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            let (before, folded) = (trained.encode(&scaled), trained.clone().folded(scale, scale));
            let after = folded.encode(&x);
            for row in 0..rows {
                let ((i, f), (j, g)) = (before.row(row), after.row(row));
                assert_eq!(i, j, "{activation:?}");
                f.iter().zip(g).for_each(|(f, g)| assert!((f / scale - g).abs() < 1e-4));
            }
            let (a, b) = (trained.decode(&before), folded.decode(&after));
            a.iter().zip(b).for_each(|(a, b)| assert!((a / scale - b).abs() < 1e-4));
        }
    }

    /// A transcoder's input and target have scales of their own.
    #[test]
    fn trap_a_transcoder_folds_two_scales() {
        let (d_in, d_out, d_sae, rows, s, t) = (6, 9, 24, 10, 0.3_f32, 4.0_f32);
        let mut normal = Normal::new(5, Purpose::Decoder);
        let shape = Shape { d_out, skip: true, ..Shape::autoencoder(d_in, d_sae) };
        let mut params = Parameters::zeros(shape);
        params.tensors_mut().into_iter().for_each(|tensor| normal.fill(tensor));
        let trained = Sae { subtract_b_dec: false, ..Sae::new(params, Activation::TopK { k: 4 }) };
        let mut x = vec![0.0; rows * d_in];
        normal.fill(&mut x);
        let scaled: Vec<f32> = x.iter().map(|v| v * s).collect();
        let before = trained.reconstruct(&scaled, &trained.encode(&scaled));
        let folded = trained.folded(s, t);
        let after = folded.reconstruct(&x, &folded.encode(&x));
        assert_eq!(after.len(), rows * d_out);
        before.iter().zip(after).for_each(|(a, b)| assert!((a / t - b).abs() < 1e-4));
    }

    #[test]
    fn a_gate_opens_by_its_own_bias() {
        let mut sae = random_sae(1, 3, Activation::Gated);
        let p = &mut sae.params;
        p.w_enc = vec![1.0, 1.0, 1.0];
        (p.b_enc, p.b_mag) = (vec![0.0, -9.0, 0.0], vec![0.25, 0.25, -9.0]);
        (p.r_mag, p.b_dec) = (vec![2.0_f32.ln(); 3], vec![0.0]);
        let latents = sae.encode(&[3.0]);
        assert_eq!(latents.row(0).0, [0], "the second gate is shut, the third has no magnitude");
        assert!((latents.row(0).1[0] - 6.25).abs() < 1e-5);
    }

    #[test]
    fn decoding_adds_active_rows_to_the_bias() {
        let sae = random_sae(4, 6, Activation::Relu);
        let x = [0.5, -1.0, 2.0, 0.1];
        let latents = sae.encode(&x);
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
