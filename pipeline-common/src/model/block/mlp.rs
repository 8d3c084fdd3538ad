//! Feed-forward blocks: with a gate and without.

use candle_core::{Result, Tensor};

use super::{
    super::{
        site::Point,
        tape::{Halt, Tape},
        weights::Weights,
    },
    exit::Exit,
    experts::Experts,
    linear::{Linear, Stored},
};
use crate::kernels::{
    activation::Activation,
    panels::{self, Panels},
};

/// A feed-forward block and its way into the residual stream.
pub struct Mlp {
    pub kind: Kind,
    pub exit: Exit,
}

/// What is between a feed-forward block's input and its output.
pub enum Kind {
    /// `down(act(gate(x)) · up(x))` (arXiv:2002.05202).
    Gated { inner: Gated, down: Linear },
    /// `down(act(up(x)))`.
    Plain { up: Linear, act: Activation, down: Linear },
    /// Of each token, the sum over a few blocks chosen for it.
    Experts(Experts),
}

impl Mlp {
    /// `residual` plus what the block makes of `x`, both [rows, d_model].
    pub fn add_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        tape: &mut Tape,
    ) -> std::result::Result<Tensor, Halt> {
        let (inner, down) = match &self.kind {
            Kind::Gated { inner, down } => (inner.forward(x, tape)?, down),
            Kind::Plain { up, act, down } => (act.apply(&up.forward(x)?)?, down),
            Kind::Experts(experts) => return self.exit.add(residual, experts.forward(x)?, tape),
        };
        let inner = tape.at(Point::MlpAct, inner)?;
        self.exit.add_layer(residual, (down, &inner), tape)
    }
}

/// `act(gate(x)) · up(x)`.
pub struct Gated {
    layers: Layers,
    act: Activation,
}

/// Both layers that feed the product.
enum Layers {
    /// Without bias and in main memory they are one product, joined tile by tile.
    Pair { pair: Panels, width: usize },
    /// One after the other.
    Each { gate: Linear, up: Linear },
}

impl Gated {
    /// Lays out both layers for their product.
    pub fn new(gate: Stored, up: Stored, act: Activation, w: &Weights) -> Result<Self> {
        let width = gate.weight.dim(0)?;
        let pair = match (&gate.bias, &up.bias) {
            (None, None) => Panels::of_pair(&gate.weight, &up.weight, w.products())?,
            _ => None,
        };
        let layers = match pair {
            Some(pair) => Layers::Pair { pair, width },
            None => Layers::Each { gate: Linear::new(gate, w)?, up: Linear::new(up, w)? },
        };
        Ok(Self { layers, act })
    }

    /// [rows, d_model] to [rows, width].
    pub fn joined(&self, x: &Tensor) -> Result<Tensor> {
        match &self.layers {
            Layers::Pair { pair, width } => panels::gated(x, pair, self.act, *width),
            Layers::Each { gate, up } => self.act.gated(&gate.forward(x)?, &up.forward(x)?),
        }
    }

    fn forward(&self, x: &Tensor, tape: &mut Tape) -> std::result::Result<Tensor, Halt> {
        if !tape.wants(Point::MlpGate) {
            return Ok(self.joined(x)?);
        }
        let (gate, up) = self.apart(x)?;
        Ok((tape.at(Point::MlpGate, gate)? * up)?)
    }

    /// Both factors of [`Self::joined`].
    fn apart(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.layers {
            Layers::Pair { pair, width } => {
                Ok((panels::gate(x, pair, self.act, *width)?, panels::up(x, pair, *width)?))
            }
            Layers::Each { gate, up } => Ok((self.act.apply(&gate.forward(x)?)?, up.forward(x)?)),
        }
    }
}
