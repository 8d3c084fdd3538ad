//! Feed-forward blocks: with a gate (decoders) and without (BERT).

use candle_core::{Result, Tensor};

use super::{
    super::{
        ModelError,
        site::Point,
        tape::{Halt, Tape},
        weights::Weights,
    },
    linear::Linear,
};
use crate::kernels::{
    activation::Activation,
    panels::{self, Panels},
};

/// `down(act(gate(x)) * up(x))` (arXiv:2002.05202).
pub struct GatedMlp {
    inner: Inner,
    down: Linear,
    act: Activation,
}

/// Both layers that feed the product.
enum Inner {
    /// Without bias and in main memory they are one product, joined tile by tile.
    Pair { pair: Panels, width: usize },
    /// One after the other.
    Each { gate: Linear, up: Linear },
}

impl GatedMlp {
    /// Loads `gate_proj`, `up_proj` and `down_proj` between widths `d` and `inner`.
    pub fn load(
        w: &Weights,
        (d, inner): (usize, usize),
        bias: bool,
        act: Activation,
    ) -> std::result::Result<Self, ModelError> {
        let (gate, up) = (w.pp("gate_proj"), w.pp("up_proj"));
        let pair = |w: &Weights| w.get("weight", &[inner, d]);
        let pair = match bias {
            true => None,
            false => Panels::of_pair(&pair(&gate)?, &pair(&up)?, w.products())?,
        };
        let layer = |w: &Weights| Linear::load(w, (d, inner), bias);
        let inner_layers = match pair {
            Some(pair) => Inner::Pair { pair, width: inner },
            None => Inner::Each { gate: layer(&gate)?, up: layer(&up)? },
        };
        Ok(Self {
            inner: inner_layers,
            down: Linear::load(&w.pp("down_proj"), (inner, d), bias)?,
            act,
        })
    }

    /// `residual` plus what the block makes of `x`, both [rows, d_model].
    pub fn add_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        tape: &mut Tape,
    ) -> std::result::Result<Tensor, Halt> {
        let inner = if tape.wants(Point::MlpGate) {
            let (gate, up) = self.apart(x)?;
            (tape.at(Point::MlpGate, gate)? * up)?
        } else {
            self.joined(x)?
        };
        let inner = tape.at(Point::MlpAct, inner)?;
        self.down.add_onto(residual, &inner, (Point::MlpOut, tape))
    }

    fn joined(&self, x: &Tensor) -> Result<Tensor> {
        match &self.inner {
            Inner::Pair { pair, width } => panels::gated(x, pair, self.act, *width),
            Inner::Each { gate, up } => self.act.gated(&gate.forward(x)?, &up.forward(x)?),
        }
    }

    /// Both factors of [`Self::joined`].
    fn apart(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.inner {
            Inner::Pair { pair, width } => {
                Ok((panels::gate(x, pair, self.act, *width)?, panels::up(x, pair, *width)?))
            }
            Inner::Each { gate, up } => Ok((self.act.apply(&gate.forward(x)?)?, up.forward(x)?)),
        }
    }
}

/// `down(act(up(x)))`.
pub struct Mlp {
    pub up: Linear,
    pub down: Linear,
    pub act: Activation,
}

impl Mlp {
    /// `residual` plus what the block makes of `x`, both [rows, d_model].
    pub fn add_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        tape: &mut Tape,
    ) -> std::result::Result<Tensor, Halt> {
        let inner = tape.at(Point::MlpAct, self.act.apply(&self.up.forward(x)?)?)?;
        self.down.add_onto(residual, &inner, (Point::MlpOut, tape))
    }
}
