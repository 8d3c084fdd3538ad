//! Self-attention over packed sentences.

use candle_core::{Result, Tensor};

use super::{
    super::{
        cache::Past,
        site::Point,
        tape::{Halt, Tape},
    },
    exit::Exit,
    linear::Linear,
    norm::Norm,
    rope::Angles,
};
use crate::kernels::attention::{Heads, Scoring, Span, attention};

/// How wide the norm of queries and keys is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself.
    Head,
    /// All heads together.
    Projection,
}

/// Projections to queries, keys and values, and back to the residual stream.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    /// Norms of queries and of keys.
    pub norms: Option<(Norm, Norm)>,
    /// Bound of queries, keys and values.
    pub clip: Option<f64>,
    pub heads: Heads,
    pub scoring: Scoring,
    pub o: Linear,
    pub exit: Exit,
}

/// Where the rows of a pass are, and what came before them.
pub struct Place<'a, 'b> {
    pub spans: &'a [Span],
    /// Turn queries and keys where positions are rotary.
    pub angles: Option<&'a Angles>,
    pub past: &'a mut Past<'b>,
}

impl Attention {
    /// `residual` plus what the attention makes of `x`, both [rows, d_model], each sentence by
    /// itself.
    pub fn add_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        place: Place<'_, '_>,
        tape: &mut Tape,
    ) -> std::result::Result<Tensor, Halt> {
        let [mut q, mut k, v] = self.project(x)?;
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward_parts(&q)?, k_norm.forward_parts(&k)?);
        }
        if let Some(angles) = place.angles {
            (q, k) = (angles.rotate(&q, self.heads.d)?, angles.rotate(&k, self.heads.d)?);
        }
        let (k, v) = place.past.extended(k, v)?;
        let mixed = attention((&q, &k, &v), place.spans, self.heads, self.scoring)?;
        let mixed = tape.at(Point::Z, mixed)?;
        self.exit.add_layer(residual, (&self.o, &mixed), tape)
    }

    /// Queries, keys and values.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let projected = [self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?];
        let Some(bound) = self.clip else { return Ok(projected) };
        let [q, k, v] = projected.map(|x| x.clamp(-bound, bound));
        Ok([q?, k?, v?])
    }
}
