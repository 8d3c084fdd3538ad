//! Adam (Kingma & Ba 2015) as one pass over parameter, gradient and both moments.
//!
//! The arithmetic is PyTorch's: `w -= lr/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)`.

/// The constants of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    beta1: f32,
    beta2: f32,
    eps: f32,
    step_size: f32,
    inverse_root_correction: f32,
    grad_scale: f32,
}

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl AdamConfig {
    /// The constants of step `t` (from 1) at learning rate `lr`; gradients are multiplied by
    /// `grad_scale` (clipping) as they are read.
    pub fn step(&self, t: u64, lr: f64, grad_scale: f64) -> AdamStep {
        let t = i32::try_from(t).unwrap_or(i32::MAX);
        AdamStep {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            step_size: (lr / (1.0 - self.beta1.powi(t))) as f32,
            inverse_root_correction: (1.0 / (1.0 - self.beta2.powi(t)).sqrt()) as f32,
            grad_scale: grad_scale as f32,
        }
    }
}

impl AdamStep {
    /// Updates a stretch of parameters with its moments; no gradient is one of zeros.
    #[inline(always)]
    pub fn update(&self, param: &mut [f32], grad: Option<&[f32]>, m: &mut [f32], v: &mut [f32]) {
        let state = param.iter_mut().zip(m).zip(v);
        // Loops, not closures: those would not be compiled for the caller's vectors.
        if let Some(grad) = grad {
            for (((param, m), v), grad) in state.zip(grad) {
                self.one(param, *grad, m, v);
            }
        } else {
            for ((param, m), v) in state {
                self.one(param, 0.0, m, v);
            }
        }
    }

    #[inline(always)]
    fn one(&self, param: &mut f32, grad: f32, m: &mut f32, v: &mut f32) {
        let g = grad * self.grad_scale;
        *m = self.beta1.mul_add(*m, (1.0 - self.beta1) * g);
        *v = self.beta2.mul_add(*v, (1.0 - self.beta2) * g * g);
        let root = v.sqrt().mul_add(self.inverse_root_correction, self.eps);
        *param -= self.step_size * *m / root;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_gradient_is_one_of_zeros() {
        let step = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 }.step(3, 1e-2, 0.5);
        let start = || ([1.0_f32, -2.0, 0.3], [0.1, -0.2, 0.0], [0.01, 0.5, 0.0]);
        let [with, without] = [Some(&[0.0; 3][..]), None].map(|grad| {
            let (mut w, mut m, mut v) = start();
            step.update(&mut w, grad, &mut m, &mut v);
            (w, m, v)
        });
        assert_eq!(with, without);
        assert_ne!(with, start());
    }

    #[test]
    fn ten_steps_equal_the_formula_in_f64() {
        let config = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let (mut w, mut m, mut v) = ([1.0_f32, -2.0], [0.0; 2], [0.0; 2]);
        let (mut w64, mut m64, mut v64) = ([1.0_f64, -2.0], [0.0; 2], [0.0; 2]);
        for t in 1..=10 {
            let grad = [0.3 * t as f32, -1e-4];
            config.step(t, 1e-2, 0.5).update(&mut w, Some(&grad), &mut m, &mut v);
            for i in 0..2 {
                let g = f64::from(grad[i]) * 0.5;
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.999 * v64[i] + 0.001 * g * g;
                let (mh, vh) = (
                    m64[i] / (1.0 - 0.9_f64.powi(t as i32)),
                    v64[i] / (1.0 - 0.999_f64.powi(t as i32)),
                );
                w64[i] -= 1e-2 * mh / (vh.sqrt() + 1e-8);
            }
        }
        for i in 0..2 {
            assert!((f64::from(w[i]) - w64[i]).abs() < 1e-6, "{w:?} {w64:?}");
        }
    }
}
