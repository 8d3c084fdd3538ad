//! The same function in the form that a format has.

use std::path::Path;

use super::saelens::About;
use crate::sae::{Parameters, Sae, SaeError};

/// Norms closer to 1 than this are 1.
const UNIT: f32 = 1e-5;

/// ReLU comes before the threshold in every peer, so that one below 0 is one of 0.
pub fn clamp_thresholds(sae: &mut Sae) {
    sae.params.threshold.iter_mut().for_each(|t| *t = t.max(0.0));
}

/// The same SAE with or without subtracting b_dec from its input: the encoder's biases take over
/// what that adds to the pre-activations, `∓ W_enc b_dec`.
pub fn subtracting(sae: &Sae, subtract: bool) -> Sae {
    let mut sae = sae.clone();
    if sae.subtract_b_dec == subtract {
        return sae;
    }
    let (p, sign) = (&mut sae.params, if subtract { 1.0 } else { -1.0 });
    for (latent, row) in p.w_enc.chunks_exact(p.d_in).enumerate() {
        let dot = |(w, b): (&f32, &f32)| f64::from(*w) * f64::from(*b);
        let shift = sign * row.iter().zip(&p.b_dec).map(dot).sum::<f64>();
        p.b_enc[latent] = (f64::from(p.b_enc[latent]) + shift) as f32;
        if let (Some(b_mag), Some(r_mag)) = (p.b_mag.get_mut(latent), p.r_mag.get(latent)) {
            *b_mag = (f64::from(*b_mag) + f64::from(*r_mag).exp() * shift) as f32;
        }
    }
    sae.subtract_b_dec = subtract;
    sae
}

/// SAELens chooses by activation times decoder norm and divides on decoding: the same as an SAE
/// whose encoder is multiplied and whose decoder is divided by the norm. A threshold acts on the
/// product, and stays.
pub fn fold_decoder_norm(sae: &mut Sae) {
    let p = &mut sae.params;
    let norms = p.decoder_norms();
    for (latent, norm) in norms.iter().enumerate().filter(|(_, n)| **n > 0.0) {
        let row = |width: usize| latent * width..(latent + 1) * width;
        p.w_enc[row(p.d_in)].iter_mut().for_each(|w| *w *= norm);
        p.w_dec[row(p.d_out)].iter_mut().for_each(|w| *w /= norm);
        p.b_enc[latent] *= norm;
    }
}

/// Whether all decoder rows have norm 1.
pub fn has_unit_decoder(p: &Parameters) -> bool {
    p.decoder_norms().iter().all(|norm| (norm - 1.0).abs() < UNIT)
}

/// A number of active latents a row from a file of weights.
///
/// # Errors
/// [`SaeError::Field`] unless it is whole and from 1 to `d_sae`.
pub fn whole_k(path: &Path, k: f64, d_sae: usize) -> Result<usize, SaeError> {
    if k.fract() == 0.0 && (1.0..=d_sae as f64).contains(&k) {
        return Ok(k as usize);
    }
    Err(SaeError::Field {
        path: path.to_owned(),
        field: "`k`".into(),
        found: k.to_string(),
        expected: format!("1 to {d_sae}, the number of latents"),
        hint: "k is the number of active latents a row",
    })
}

/// The note of a format that has no place for firing frequencies.
pub fn without_frequency(about: &About) -> Vec<String> {
    let note = "the firing frequencies have no place in this format and are left out";
    Vec::from_iter((!about.frequency.is_empty()).then(|| note.to_owned()))
}

/// Refuses what SAELens alone has a place for.
///
/// # Errors
/// [`SaeError::Inexpressible`] for standardised rows and an output of another width.
pub fn require_plain(target: &'static str, sae: &Sae) -> Result<(), SaeError> {
    let refuse = |what: &str| Err(SaeError::Inexpressible { target, what: what.into() });
    if sae.row_norm.is_some() {
        return refuse("rows standardised one by one before encoding");
    }
    if sae.params.d_out != sae.params.d_in {
        return refuse("an output of another width than the input");
    }
    Ok(())
}
