//! Norms with their weights.

use candle_core::{Result, Tensor};

use super::super::{ModelError, weights::Weights};
use crate::kernels::norm;

/// Root-mean-square norm (arXiv:1910.07467).
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Loads `weight` `[d]`.
    pub fn load(weights: &Weights, d: usize, eps: f64) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: weights.get("weight", &[d])?, eps })
    }

    /// [rows, d] to [rows, d].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        norm::rms_norm(x, &self.weight, self.eps)
    }
}

/// Layer norm with weight and bias.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads `weight` and `bias` `[d]`.
    pub fn load(weights: &Weights, d: usize, eps: f64) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: weights.get("weight", &[d])?, bias: weights.get("bias", &[d])?, eps })
    }

    /// [rows, d] to [rows, d].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        norm::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
