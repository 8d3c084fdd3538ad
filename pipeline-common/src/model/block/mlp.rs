//! Feed-forward blocks: with a gate (decoders) and without (BERT).

use candle_core::Tensor;

use super::{
    super::{
        site::Point,
        tape::{Halt, Tape},
    },
    linear::Linear,
};
use crate::kernels::activation::Activation;

/// `down(act(gate(x)) * up(x))` (arXiv:2002.05202).
pub struct GatedMlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub act: Activation,
}

impl GatedMlp {
    /// [rows, d_model] to [rows, d_model].
    pub fn forward(&self, x: &Tensor, tape: &mut Tape) -> Result<Tensor, Halt> {
        let gate = self.gate.forward(x)?;
        if tape.wants(Point::MlpGate) {
            tape.at(Point::MlpGate, &self.act.apply(&gate)?)?;
        }
        let inner = self.act.gated(&gate, &self.up.forward(x)?)?;
        tape.at(Point::MlpAct, &inner)?;
        Ok(self.down.forward(&inner)?)
    }
}

/// `down(act(up(x)))`.
pub struct Mlp {
    pub up: Linear,
    pub down: Linear,
    pub act: Activation,
}

impl Mlp {
    /// [rows, d_model] to [rows, d_model].
    pub fn forward(&self, x: &Tensor, tape: &mut Tape) -> Result<Tensor, Halt> {
        let inner = self.act.apply(&self.up.forward(x)?)?;
        tape.at(Point::MlpAct, &inner)?;
        Ok(self.down.forward(&inner)?)
    }
}
