//! Gated (Rajamanoharan et al. 2024a): a gate `π = a + b_gate` decides which latents are active,
//! `a·e^{r_mag} + b_mag` how strongly. The gate learns from an L1 penalty on `relu(π)` and from a
//! second reconstruction by `relu(π)`.

use super::dense::{Elementwise, Entry, EntryGrad};
use crate::sae::Parameters;

/// Whose losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GatedForm {
    /// L1 of `relu(π)`; the second reconstruction moves neither decoder nor b_dec (the paper,
    /// `dictionary_learning`).
    Detached,
    /// L1 weighted by decoder norms; the second reconstruction moves all (SAELens).
    Joint,
}

/// The gated activation.
#[derive(Clone, Debug)]
pub struct Gated {
    form: GatedForm,
    norms: Vec<f32>,
    /// `e^{r_mag}`, `[d_sae]`.
    scales: Vec<f32>,
}

impl Gated {
    /// With the losses of `form`.
    pub fn new(form: GatedForm) -> Self {
        Self { form, norms: vec![], scales: vec![] }
    }

    fn weight(&self, latent: usize) -> f32 {
        self.norms.get(latent).copied().unwrap_or(1.0)
    }

    #[inline(always)]
    fn magnitude(&self, params: &Parameters, l: usize, a: f32) -> f32 {
        a.mul_add(self.scales[l], params.b_mag[l])
    }
}

impl Elementwise<2> for Gated {
    fn prepare(&mut self, params: &Parameters, _step: u64) {
        self.scales = params.r_mag.iter().map(|r| r.exp()).collect();
        if self.form == GatedForm::Joint {
            self.norms = params.decoder_norms();
        }
    }

    /// The latent's activation, and `relu(π)`.
    #[inline(always)]
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> [f32; 2] {
        let gate = a + params.b_enc[l];
        if gate > 0.0 { [self.magnitude(params, l, a).max(0.0), gate] } else { [0.0; 2] }
    }

    #[inline(always)]
    fn backward(&self, params: &Parameters, e: Entry<2>, per_row: f32) -> EntryGrad {
        if e.f[1] <= 0.0 {
            return EntryGrad::default();
        }
        let gate = e.g[1] + per_row * self.weight(e.latent);
        let magnitude = if self.magnitude(params, e.latent, e.a) > 0.0 { e.g[0] } else { 0.0 };
        let scaled = magnitude * self.scales[e.latent];
        EntryGrad { pre: gate + scaled, own: [gate, 0.0, scaled * e.a, magnitude] }
    }

    fn penalty(&self, _params: &Parameters, l: usize, f: [f32; 2]) -> (f32, f32) {
        let pull = if self.form == GatedForm::Joint { f[1] } else { 0.0 };
        (f[1] * self.weight(l), pull)
    }

    fn is_detached(&self, c: usize) -> bool {
        c == 1 && self.form == GatedForm::Detached
    }
}
