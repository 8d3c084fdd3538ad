//! A linear layer over all rows at once.

use candle_core::{Result, Tensor};

use super::super::{ModelError, weights::Weights};

/// `x Wᵀ + b`; the weight is stored [out, in].
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `weight` [out, in] and, if the family has one, `bias` `[out]`.
    pub fn load(
        weights: &Weights,
        (input, output): (usize, usize),
        bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let weight = weights.get("weight", &[output, input])?;
        let bias = bias.then(|| weights.get("bias", &[output])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// A layer that shares another's weight.
    pub fn tied(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// [rows, in] to [rows, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
