//! A linear layer over all rows at once.

use candle_core::{Result, Tensor};

use super::super::{
    ModelError,
    site::Point,
    tape::{Halt, Tape},
    weights::Weights,
};
use crate::kernels::panels::{Panels, Plus, linear};

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
        self.add_to(None, x)
    }

    /// `residual`, if any, plus the layer's output: the sum is written without the output.
    pub fn add_to(&self, residual: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.weight {
            Matrix::Panels(panels) => {
                return linear(x, panels, Plus { bias: self.bias.as_ref(), residual });
            }
            Matrix::Tensor(weight) => weight,
        };
        let y = x.matmul(&weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        match residual {
            Some(residual) => residual + y,
            None => Ok(y),
        }
    }

    /// `residual` plus the layer's output, which is handed out first if it was asked for.
    pub fn add_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        (point, tape): (Point, &mut Tape),
    ) -> std::result::Result<Tensor, Halt> {
        if !tape.wants(point) {
            return Ok(self.add_to(Some(residual), x)?);
        }
        let y = tape.at(point, self.forward(x)?)?;
        Ok((residual + y)?)
    }
}

impl Matrix {
    fn new(weight: Tensor, weights: &Weights) -> std::result::Result<Self, ModelError> {
        let panels = Panels::of(&weight, weights.products())?;
        Ok(panels.map_or(Self::Tensor(weight), Self::Panels))
    }
}
