//! Self-attention over packed sentences.

use candle_core::Tensor;

use super::{
    super::{
        site::Point,
        tape::{Halt, Tape},
    },
    linear::Linear,
    rope::Angles,
};
use crate::kernels::attention::{Heads, attention};

/// Projections to queries, keys and values, and back to the residual stream.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub heads: Heads,
}

impl Attention {
    /// [rows, d_model] to [rows, d_model], each sentence by itself.
    ///
    /// `angles` turns queries and keys where positions are rotary.
    pub fn forward(
        &self,
        x: &Tensor,
        starts: &[usize],
        angles: Option<&Angles>,
        tape: &mut Tape,
    ) -> Result<Tensor, Halt> {
        let (mut q, mut k) = (self.q.forward(x)?, self.k.forward(x)?);
        if let Some(angles) = angles {
            (q, k) = (angles.rotate(&q)?, angles.rotate(&k)?);
        }
        let mixed = attention(&q, &k, &self.v.forward(x)?, starts, self.heads)?;
        tape.at(Point::Z, &mixed)?;
        Ok(self.o.forward(&mixed)?)
    }
}
