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
    /// `residual` plus what the attention makes of `x`, both [rows, d_model], each sentence by
    /// itself.
    ///
    /// `angles` turns queries and keys where positions are rotary.
    pub fn add_onto(
        &self,
        residual: &Tensor,
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
        let mixed = tape.at(Point::Z, mixed)?;
        self.o.add_onto(residual, &mixed, (Point::AttnOut, tape))
    }
}
