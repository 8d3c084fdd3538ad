//! One block: attention, then (or beside it) a feed-forward block.

use candle_core::Tensor;

use super::{
    super::{
        ModelError,
        block::{
            attention::{Attention, Place, QkNorm},
            exit::{self, Exit},
            experts::{Expert, Experts},
            linear::{Linear, Stored},
            mlp::{Gated, Kind, Mlp},
            norm::Norm,
        },
        site::Point,
        tape::{Halt, Tape},
        weights::Weights,
    },
    config::{self, Config, Inner, Layer, Qkv},
};
use crate::kernels::attention::Scoring;

pub(super) struct Block {
    attn_norm: Option<Norm>,
    attn: Attention,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    /// Whether both read what enters the block.
    parallel: bool,
}

impl Block {
    pub fn load(w: &Weights, c: &Config, layer: &Layer) -> Result<Self, ModelError> {
        let norm = |name: &str| Norm::load(&w.pp(name), c.d_model, c.norm);
        let maybe = |name: Option<&str>| name.map(norm).transpose();
        let names = &c.names;
        let exit = |after, points| -> Result<Exit, ModelError> {
            Ok(Exit { norm: maybe(after)?, scale: c.residual.scale, points })
        };
        let attn_norm = match names.attn.before {
            Some(_) if layer.unnormed => Some(Norm::None),
            name => maybe(name)?,
        };
        Ok(Self {
            attn_norm,
            attn: attention(
                &w.pp(names.attn.module),
                c,
                layer,
                exit(names.attn.after, exit::OF_ATTENTION)?,
            )?,
            mlp_norm: maybe(names.mlp.before)?,
            mlp: Mlp {
                kind: feed_forward(&w.pp(names.mlp.module), c, layer)?,
                exit: exit(names.mlp.after, exit::OF_MLP)?,
            },
            parallel: c.residual.parallel,
        })
    }

    /// [rows, d_model] to [rows, d_model].
    pub fn forward(
        &self,
        x: &Tensor,
        place: Place<'_, '_>,
        tape: &mut Tape,
    ) -> Result<Tensor, Halt> {
        let normed = read(&self.attn_norm, x, (Point::AttnIn, tape))?;
        let mut sum = self.attn.add_onto(x, &normed, place, tape)?;
        if !self.parallel {
            sum = tape.at(Point::ResidMid, sum)?;
        }
        let from = if self.parallel { x } else { &sum };
        let normed = read(&self.mlp_norm, from, (Point::MlpIn, tape))?;
        let sum = self.mlp.add_onto(&sum, &normed, tape)?;
        tape.at(Point::ResidPost, sum)
    }
}

/// What half a block reads: without a norm of its own, the residual stream.
fn read(
    norm: &Option<Norm>,
    x: &Tensor,
    (point, tape): (Point, &mut Tape),
) -> Result<Tensor, Halt> {
    match norm {
        Some(norm) => tape.at(point, norm.forward(x)?),
        None => Ok(x.clone()),
    }
}

fn attention(w: &Weights, c: &Config, layer: &Layer, exit: Exit) -> Result<Attention, ModelError> {
    let (a, heads) = (&c.attention, c.attention.heads);
    let (q, kv) = (heads.heads * heads.d, heads.kv_heads * heads.d);
    let stored = match c.names.attn.qkv {
        Qkv::Apart(names) => {
            let load = |(name, n)| Stored::load(&w.pp(name), (c.d_model, n), a.bias.qkv);
            let [queries, keys, values] = [(names[0], q), (names[1], kv), (names[2], kv)].map(load);
            [queries?, keys?, values?]
        }
        Qkv::Joined(name) => {
            let all = Stored::load(&w.pp(name), (c.d_model, q + 2 * kv), a.bias.qkv)?;
            [all.outputs(0, q)?, all.outputs(q, kv)?, all.outputs(q + kv, kv)?]
        }
        Qkv::ByHead(name) => {
            let all = Stored::load(&w.pp(name), (c.d_model, q + 2 * kv), a.bias.qkv)?;
            let part = |i| all.part_of_heads((i, 3), heads.d);
            [part(0)?, part(1)?, part(2)?]
        }
    };
    let [q_layer, k_layer, v_layer] = stored.map(|stored| Linear::new(stored, w));
    let norms = |kind| -> Result<(Norm, Norm), ModelError> {
        let (q, kv) = if kind == QkNorm::Head { (heads.d, heads.d) } else { (q, kv) };
        let norm = |name: &str, n| Norm::load(&w.pp(name), n, c.norm);
        Ok((norm("q_norm", q)?, norm("k_norm", kv)?))
    };
    Ok(Attention {
        q: q_layer?,
        k: k_layer?,
        v: v_layer?,
        norms: a.norm.map(norms).transpose()?,
        clip: a.clip,
        heads,
        scoring: Scoring {
            scale: a.scale as f32,
            cap: a.cap.map(|cap| cap as f32),
            sees: layer.sees,
        },
        o: Linear::load(&w.pp(c.names.attn.o), (q, c.d_model), a.bias.o)?,
        exit,
    })
}

fn feed_forward(w: &Weights, c: &Config, layer: &Layer) -> Result<Kind, ModelError> {
    let (d, m, names) = (c.d_model, &c.mlp, &c.names.mlp);
    if let Some(experts) = m.experts.filter(|_| layer.experts) {
        return Ok(Kind::Experts(load_experts(w, c, &experts)?));
    }
    let down = Linear::load(&w.pp(names.down), (m.width, d), m.bias)?;
    let stored = |name: &str, n| Stored::load(&w.pp(name), (d, n), m.bias);
    let (gate, up) = match names.inner {
        Inner::Plain(up) => {
            let up = Linear::new(stored(up, m.width)?, w)?;
            return Ok(Kind::Plain { up, act: m.act, down });
        }
        Inner::Gated { gate, up } => (stored(gate, m.width)?, stored(up, m.width)?),
        Inner::Joined(name) => {
            let both = stored(name, 2 * m.width)?;
            (both.outputs(0, m.width)?, both.outputs(m.width, m.width)?)
        }
    };
    Ok(Kind::Gated { inner: Gated::new(gate, up, m.act, w)?, down })
}

fn load_experts(w: &Weights, c: &Config, e: &config::Experts) -> Result<Experts, ModelError> {
    let (d, act) = (c.d_model, c.mlp.act);
    let expert = |w: &Weights, width, [gate, up, down]: [&str; 3]| -> Result<Expert, ModelError> {
        let stored = |name: &str| Stored::load(&w.pp(name), (d, width), false);
        Ok(Expert {
            inner: Gated::new(stored(gate)?, stored(up)?, act, w)?,
            down: Linear::load(&w.pp(down), (width, d), false)?,
        })
    };
    let w = &w.beside(e.names.module);
    let names = [e.names.gate, e.names.up, e.names.down];
    let one = |i| expert(&w.pp("experts").pp(i), e.width, names);
    let shared = |width| -> Result<(Expert, Linear), ModelError> {
        let gate = Linear::load(&w.pp("shared_expert_gate"), (d, 1), false)?;
        Ok((expert(&w.pp("shared_expert"), width, names)?, gate))
    };
    Ok(Experts {
        router: Linear::load(&w.pp("gate"), (d, e.count), false)?,
        experts: (0..e.count).map(one).collect::<Result<_, _>>()?,
        chosen: e.chosen,
        normalised: e.normalised,
        shared: e.shared.map(shared).transpose()?,
    })
}
