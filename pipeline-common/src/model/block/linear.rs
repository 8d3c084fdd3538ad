//! A linear layer over all rows at once.

use candle_core::{Result, Tensor};

use super::super::{ModelError, weights::Weights};
use crate::kernels::panels::{Panels, linear};

/// `x Wᵀ + b`; the weight is stored [out, in].
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// A weight where its product is computed.
pub enum Matrix {
    /// In main memory.
    Panels(Panels),
    /// On another device, or in another format than the kernels know.
    Tensor(Tensor),
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
        Ok(Self { weight: Matrix::new(weight, weights)?, bias })
    }

    /// A layer that shares another's weight.
    pub fn tied(weight: Tensor, weights: &Weights) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: Matrix::new(weight, weights)?, bias: None })
    }

    /// [rows, in] to [rows, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.weight {
            Matrix::Panels(panels) => return linear(x, panels, self.bias.as_ref()),
            Matrix::Tensor(weight) => weight,
        };
        let y = x.matmul(&weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Matrix {
    fn new(weight: Tensor, weights: &Weights) -> std::result::Result<Self, ModelError> {
        let panels = Panels::of(&weight, weights.products())?;
        Ok(panels.map_or(Self::Tensor(weight), Self::Panels))
    }
}
