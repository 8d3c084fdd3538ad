//! Norms with their weights.

use candle_core::{D, DType, Result, Tensor};

use super::super::{ModelError, weights::Weights};
use crate::kernels::norm;

/// Which norm a family uses everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    pub kind: NormKind,
    pub eps: f64,
}

/// What a norm subtracts, divides by and multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root-mean-square norm (arXiv:1910.07467).
    Rms,
    /// The same, stored as the weight's difference from one (Gemma).
    RmsFromOne,
    /// Layer norm (arXiv:1607.06450), with a weight and perhaps a bias.
    Layer { bias: bool },
    /// Layer norm alone (OLMo).
    LayerPlain,
}

impl NormConfig {
    /// Weights of a norm of width `d`.
    pub fn parameters(self, d: usize) -> u64 {
        let vectors = match self.kind {
            NormKind::Rms | NormKind::RmsFromOne | NormKind::Layer { bias: false } => 1,
            NormKind::Layer { bias: true } => 2,
            NormKind::LayerPlain => 0,
        };
        vectors * d as u64
    }
}

/// A norm over rows.
pub enum Norm {
    /// What stands where a model has a module that does nothing.
    None,
    Rms {
        weight: Tensor,
        eps: f64,
    },
    Layer {
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    },
}

impl Norm {
    /// Loads `weight` and `bias` `[d]`, as far as the norm has them.
    pub fn load(
        w: &Weights,
        d: usize,
        NormConfig { kind, eps }: NormConfig,
    ) -> std::result::Result<Self, ModelError> {
        let weight = || w.get("weight", &[d]);
        Ok(match kind {
            NormKind::Rms => Self::Rms { weight: weight()?, eps },
            NormKind::RmsFromOne => Self::Rms { weight: from_one(&weight()?)?, eps },
            NormKind::Layer { bias: true } => {
                Self::Layer { weight: weight()?, bias: w.get("bias", &[d])?, eps }
            }
            NormKind::Layer { bias: false } => {
                let weight = weight()?;
                Self::Layer { bias: weight.zeros_like()?, weight, eps }
            }
            NormKind::LayerPlain => {
                let weight = w.ones(d)?;
                Self::Layer { bias: weight.zeros_like()?, weight, eps }
            }
        })
    }

    /// [rows, d] to [rows, d].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Rms { weight, eps } => norm::rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => norm::layer_norm(x, weight, bias, *eps),
        }
    }

    /// The norm of [rows, d] without what it divides by and without a bias: its linear part.
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Rms { weight, .. } => x.broadcast_mul(weight),
            Self::Layer { weight, .. } => {
                x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?.broadcast_mul(weight)
            }
        }
    }

    /// [rows, n · d], each `d` numbers by themselves.
    pub fn forward_parts(&self, x: &Tensor) -> Result<Tensor> {
        let d = match self {
            Self::None => return Ok(x.clone()),
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight.dim(0)?,
        };
        self.forward(&x.reshape(((), d))?)?.reshape(x.shape())
    }
}

/// 1 + w in f32, whatever w is stored in.
fn from_one(w: &Tensor) -> Result<Tensor> {
    (w.to_dtype(DType::F32)? + 1.0)?.to_dtype(w.dtype())
}
