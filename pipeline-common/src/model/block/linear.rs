//! A linear layer over all rows at once.

use candle_core::{Result, Tensor};

use super::super::{ModelError, weights::Weights};
use crate::kernels::panels::{Panels, Plus, linear};

/// A linear layer as it is stored: weight [out, in], bias `[out]`.
#[derive(Clone)]
pub struct Stored {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Stored {
    /// Reads `weight` [out, in] and, if the family has one, `bias` `[out]`.
    pub fn load(
        w: &Weights,
        (input, output): (usize, usize),
        bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let weight = w.matrix((input, output))?;
        let bias = bias.then(|| w.get("bias", &[output])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The layer of `n` outputs from `first` on.
    pub fn outputs(&self, first: usize, n: usize) -> Result<Self> {
        self.map(|x| x.narrow(0, first, n))
    }

    /// Outputs cut into `parts` of `width` for each of `heads` and gathered by part.
    ///
    /// Output `(head · parts + part) · width + i` becomes output `head · width + i` of its part.
    pub fn part_of_heads(&self, (part, parts): (usize, usize), width: usize) -> Result<Self> {
        self.map(|x| {
            let heads = x.dim(0)? / (parts * width);
            let shape = x.dims().to_vec();
            let rest: usize = shape[1..].iter().product();
            let cut = x.reshape((heads, parts, width * rest))?.narrow(1, part, 1)?.contiguous()?;
            cut.reshape([&[heads * width], &shape[1..]].concat())
        })
    }

    fn map(&self, part: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { weight: part(&self.weight)?, bias: self.bias.as_ref().map(part).transpose()? })
    }
}

/// `x Wᵀ + b`.
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// A weight where its product is computed.
enum Matrix {
    /// In main memory.
    Panels(Panels),
    /// On another device, or in another format than the kernels know.
    Tensor(Tensor),
}

impl Linear {
    /// Lays out a weight for the products that `w` is opened for.
    pub fn new(stored: Stored, w: &Weights) -> Result<Self> {
        let Stored { weight, bias } = stored;
        let panels = Panels::of(&weight.contiguous()?, w.products())?;
        Ok(Self { weight: panels.map_or(Matrix::Tensor(weight), Matrix::Panels), bias })
    }

    /// Loads and lays out a layer from `sizes.0` to `sizes.1` numbers.
    pub fn load(
        w: &Weights,
        sizes: (usize, usize),
        bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self::new(Stored::load(w, sizes, bias)?, w)?)
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
}
