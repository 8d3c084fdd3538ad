//! How what a block computes joins the residual stream.

use candle_core::Tensor;

use super::{
    super::{
        site::Point,
        tape::{Halt, Tape},
    },
    linear::Linear,
    norm::Norm,
};

/// `residual + scale · norm(y)`, with a norm and a scale where the family has them.
pub struct Exit {
    pub norm: Option<Norm>,
    pub scale: Option<f64>,
    pub points: (Point, Point),
}

/// Points before and after the norm of what an attention adds.
pub const OF_ATTENTION: (Point, Point) = (Point::AttnProj, Point::AttnOut);
/// Points before and after the norm of what a feed-forward block adds.
pub const OF_MLP: (Point, Point) = (Point::MlpProj, Point::MlpOut);

impl Exit {
    /// Adds what `last`, the block's last layer, makes of `x`.
    pub fn add_layer(
        &self,
        residual: &Tensor,
        (last, x): (&Linear, &Tensor),
        tape: &mut Tape,
    ) -> Result<Tensor, Halt> {
        if self.norm.is_none() && self.scale.is_none() && !tape.wants(self.points.1) {
            return Ok(last.add_to(Some(residual), x)?);
        }
        self.add(residual, last.forward(x)?, tape)
    }

    /// Adds `y`, what the block computed.
    pub fn add(&self, residual: &Tensor, mut y: Tensor, tape: &mut Tape) -> Result<Tensor, Halt> {
        if let Some(norm) = &self.norm {
            y = norm.forward(&tape.at(self.points.0, y)?)?;
        }
        y = tape.at(self.points.1, y)?;
        if let Some(scale) = self.scale {
            y = (y * scale)?;
        }
        Ok((residual + y)?)
    }
}
