//! JumpReLU (Rajamanoharan et al. 2024): `f = a·H(a - θ)`, thresholds trained directly in f32
//! through a two-sided window of width ε around θ.

use super::{
    dense::{Elementwise, Entry, EntryGrad},
    penalty::{Sums, add_norm_gradient},
};
use crate::sae::{Parameters, gradients::Gradients};

/// What is penalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsity {
    /// `λ·L0`, whose gradient reaches thresholds only (Gemma Scope).
    Step,
    /// `λ·Σ tanh(c·f‖W_dec‖)` (SAELens, after Anthropic, January 2025).
    Tanh {
        /// c.
        scale: f32,
    },
    /// `λ·(L0/target - 1)²` of the batch's mean L0 (`dictionary_learning`).
    Target {
        /// Wanted mean of active latents a row.
        l0: f64,
    },
}

/// What the straight-through window of the L0 penalty looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Window {
    /// Pre-activations, on both sides of the threshold (the paper, SAELens).
    PreActivation,
    /// Activations: nothing just below the threshold counts, and thresholds below half the
    /// bandwidth see every inactive row (`dictionary_learning`).
    Activation,
}

/// The JumpReLU activation with its straight-through window.
#[derive(Clone, Debug, PartialEq)]
pub struct JumpRelu {
    /// ε, in units of the scaled input.
    bandwidth: f32,
    sparsity: Sparsity,
    window: Window,
    /// Decoder norms, where the penalty needs them.
    norms: Vec<f32>,
}

impl JumpRelu {
    /// The paper's, with `λ·L0`.
    pub fn new(bandwidth: f32) -> Self {
        let (sparsity, window) = (Sparsity::Step, Window::PreActivation);
        Self { bandwidth, sparsity, window, norms: vec![] }
    }

    /// With another penalty.
    #[must_use]
    pub fn with(self, sparsity: Sparsity, window: Window) -> Self {
        Self { sparsity, window, ..self }
    }

    fn in_window(&self, x: f32, threshold: f32) -> bool {
        (x - threshold).abs() < 0.5 * self.bandwidth
    }

    /// Rows in which the step of latent `l` has a gradient.
    fn window_rows(&self, params: &Parameters, sums: &Sums, l: usize) -> u64 {
        let latent = sums.latents[l];
        match self.window {
            Window::PreActivation => latent.window,
            // Each inactive row has f = 0.
            Window::Activation if self.in_window(0.0, params.threshold[l]) => {
                latent.window_active + sums.rows as u64 - latent.fired
            }
            Window::Activation => latent.window_active,
        }
    }
}

impl Elementwise<1> for JumpRelu {
    fn prepare(&mut self, params: &Parameters, _step: u64) {
        if let Sparsity::Tanh { .. } = self.sparsity {
            self.norms = params.decoder_norms();
        }
    }

    #[inline(always)]
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> [f32; 1] {
        let a = a + params.b_enc[l];
        // θ is kept at or above 0, so the ReLU of the paper is implied.
        [if a > params.threshold[l] { a } else { 0.0 }]
    }

    /// The window's lower end, and a little less: its rounding is another than that of
    /// `in_window`.
    fn silent(&self, params: &Parameters, l: usize) -> f32 {
        let threshold = params.threshold[l];
        threshold - 0.5 * self.bandwidth - 1e-6 * (threshold + self.bandwidth)
    }

    #[inline(always)]
    fn concerns(&self, params: &Parameters, l: usize, a: f32) -> bool {
        self.in_window(a + params.b_enc[l], params.threshold[l])
    }

    #[inline(always)]
    fn backward(&self, params: &Parameters, e: Entry<1>, per_row: f32) -> EntryGrad {
        let threshold = params.threshold[e.latent];
        let mut g = e.g[0];
        if let Sparsity::Tanh { scale } = self.sparsity {
            let slope = scale * self.norms[e.latent];
            g += per_row * slope * (1.0 - (slope * e.f[0]).tanh().powi(2));
        }
        let pre = if e.f[0] > 0.0 { g } else { 0.0 };
        // The window sees pre-activations on both sides of θ; looking at f instead would leave
        // only the upper half.
        let inside = self.concerns(params, e.latent, e.a);
        let to_threshold = if inside { -threshold * g / self.bandwidth } else { 0.0 };
        EntryGrad { pre, own: [pre, to_threshold, 0.0, 0.0] }
    }

    fn penalty(&self, _params: &Parameters, l: usize, f: [f32; 1]) -> (f32, f32) {
        match self.sparsity {
            Sparsity::Tanh { scale } => {
                let value = (scale * f[0] * self.norms[l]).tanh();
                (value, scale * f[0] * (1.0 - value * value))
            }
            Sparsity::Step | Sparsity::Target { .. } => (1.0, 0.0),
        }
    }

    fn finish(
        &mut self,
        params: &Parameters,
        sums: &Sums,
        lambda: f64,
        grads: &mut Gradients,
    ) -> f64 {
        let (loss, per_l0) = match self.sparsity {
            Sparsity::Step => (lambda * sums.l0(), lambda),
            Sparsity::Target { l0 } => {
                let excess = sums.l0() / l0 - 1.0;
                (lambda * excess * excess, 2.0 * lambda * excess / l0)
            }
            Sparsity::Tanh { .. } => {
                add_norm_gradient(params, sums, lambda / sums.rows as f64, grads);
                return lambda * sums.mean(|latent| latent.penalty);
            }
        };
        let per_row = per_l0 / sums.rows as f64 / f64::from(self.bandwidth);
        let [_, threshold, ..] = grads.small().own;
        for (l, grad) in threshold.iter_mut().enumerate() {
            *grad -= (per_row * self.window_rows(params, sums, l) as f64) as f32;
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::{
        parameters::Shape,
        variant::{Batch, Firing, Objective, dense::Dense},
    };

    /// ∂L0/∂θ at θ = 1, ε = 0.1, of one row with pre-activation `a`.
    fn l0_gradient(window: Window, a: f32) -> f32 {
        let mut params = Parameters::zeros(Shape::jumprelu(1, 1));
        params.threshold[0] = 1.0;
        params.w_enc[0] = 1.0;
        let mut grads = Gradients::new(params.shape());
        let mut objective = Dense::new(JumpRelu::new(0.1).with(Sparsity::Step, window), 1.0);
        let batch = Batch {
            input: &[a],
            target: &[0.0],
            centred: false,
            precision: candle_core::DType::F32,
            sparsity: 1.0,
            step: 0,
        };
        objective.accumulate(&params, batch, &mut Firing::new(1, 1), &mut grads);
        grads.tensors().threshold[0]
    }

    /// The smallest conformance test of a JumpReLU; `dictionary_learning` has the upper half only.
    #[test]
    fn trap_a_window_on_activations_is_one_sided() {
        for (a, inside, upper) in [
            (0.90, false, false),
            (0.96, true, false),
            (0.99, true, false),
            (1.01, true, true),
            (1.04, true, true),
            (1.06, false, false),
        ] {
            let expected = |inside: bool| if inside { -10.0 } else { 0.0 };
            assert!((l0_gradient(Window::PreActivation, a) - expected(inside)).abs() < 1e-4, "{a}");
            assert!((l0_gradient(Window::Activation, a) - expected(upper)).abs() < 1e-4, "{a}");
        }
    }

    #[test]
    fn the_activation_jumps_at_the_threshold() {
        let mut params = Parameters::zeros(Shape::jumprelu(1, 1));
        params.threshold[0] = 1.0;
        let activation = JumpRelu::new(0.1);
        for (a, f, df_da, df_dtheta) in [
            (0.90, 0.0, 0.0, 0.0),
            (0.96, 0.0, 0.0, -10.0),
            (1.04, 1.04, 1.0, -10.0),
            (1.06, 1.06, 1.0, 0.0),
        ] {
            assert_eq!(activation.activate(&params, 0, a), [f]);
            let entry = Entry { latent: 0, a, f: [f], g: [1.0] };
            let grad = activation.backward(&params, entry, 0.0);
            assert_eq!(grad.pre, df_da);
            assert!((grad.own[1] - df_dtheta).abs() < 1e-4, "{a}");
        }
    }
}
