//! JumpReLU (Rajamanoharan et al. 2024): `f = a·H(a - θ)`, penalty `λ·‖f‖₀`, thresholds trained
//! directly in f32 through a two-sided window of width ε around θ.

use super::dense::{Elementwise, Entry};
use crate::sae::Parameters;

/// The JumpReLU activation with its straight-through window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JumpRelu {
    /// ε, in units of the scaled input.
    pub bandwidth: f32,
}

impl Elementwise for JumpRelu {
    #[inline(always)]
    fn activate(&self, params: &Parameters, l: usize, a: f32) -> f32 {
        // θ is kept at or above 0, so the ReLU of the paper is implied.
        if a > params.threshold[l] { a } else { 0.0 }
    }

    #[inline(always)]
    fn penalty(&self, _l: usize, _a: f32, f: f32) -> f32 {
        f32::from(f > 0.0)
    }

    #[inline(always)]
    fn backward(&self, params: &Parameters, e: Entry, per_row: f32) -> (f32, f32) {
        let threshold = params.threshold[e.latent];
        let to_pre = if e.a > threshold { e.g } else { 0.0 };
        // The window sees pre-activations on both sides of θ; looking at f instead would leave
        // only the upper half.
        let inside = (e.a - threshold).abs() < 0.5 * self.bandwidth;
        let to_threshold = if inside { -(threshold * e.g + per_row) / self.bandwidth } else { 0.0 };
        (to_pre, to_threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_two_sided() {
        let mut params = Parameters::zeros(1, 1, true);
        params.threshold[0] = 1.0;
        let activation = JumpRelu { bandwidth: 0.1 };
        let gradients = |a: f32, g: f32, per_row: f32| {
            let f = activation.activate(&params, 0, a);
            activation.backward(&params, Entry { latent: 0, a, f, g }, per_row).1
        };
        for (a, expected) in
            [(0.90, 0.0), (0.96, -10.0), (0.99, -10.0), (1.01, -10.0), (1.04, -10.0), (1.06, 0.0)]
        {
            assert!((gradients(a, 1.0, 0.0) - expected).abs() < 1e-4, "df/dθ at {a}");
            assert!((gradients(a, 0.0, 1.0) - expected).abs() < 1e-4, "dL0/dθ at {a}");
        }
    }
}
