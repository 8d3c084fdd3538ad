//! The network that all families but BERT's share: embedding, blocks on a residual stream, norm, head.
//!
//! What families differ in is a [`Config`]; where their tensors are called what, its
//! [`Names`](config::Names).

mod block;
pub mod config;
pub mod sites;

use candle_core::Tensor;

use super::{
    ModelError,
    block::{
        attention::Place,
        linear::{Linear, Stored},
        norm::Norm,
        rope::{Angles, Rope},
    },
    cache::Past,
    hook::Hook,
    site::Point,
    tape::{Halt, Tape},
    weights::Weights,
};
use crate::kernels::attention::Span;
use block::Block;
pub use config::Config;
use config::{Embed, Head};

/// Where base models lie in checkpoints of classes that put them below something else.
const BASES: [&str; 2] = ["language_model.model", "model.language_model"];

/// A network, loaded as deep as its hooks need.
pub struct Transformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    ropes: Vec<Rope>,
    /// Of each block, its rotary positions.
    rope_of: Vec<Option<usize>>,
    norm: Option<Norm>,
    head: Option<(Linear, Head)>,
}

/// From ids to the residual stream.
struct Embedding {
    table: Tensor,
    positions: Option<Tensor>,
    norm: Option<Norm>,
    /// Whether the table's rows are not yet what the module hands on.
    layered: bool,
    scales: Embed,
}

impl Transformer {
    pub fn load(
        weights: &Weights,
        config: &Config,
        hooks: &[Hook],
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let (names, d) = (&config.names, config.d_model);
        let table = format!("{}.weight", names.embed);
        let candidates = ["", names.base].into_iter().chain(BASES).map(|base| weights.pp(base));
        let mut candidates = candidates.filter(|w| w.contains(&table));
        let base = candidates.next().unwrap_or_else(|| weights.pp(names.base));
        let wants = |point| hooks.iter().any(|h| h.point == point);
        let embedding = Embedding::load(&base, config)?;
        let head = config.head.filter(|_| wants(Point::Logits));
        let head = head.map(|head| load_head(weights, config, (head, &embedding.table)));
        let norm = (head.is_some() || wants(Point::FinalNorm))
            .then(|| Norm::load(&base.pp(names.norm), d, config.norm));
        let layers = base.pp(names.layers).transposed(names.transposed);
        let block = |i| Block::load(&layers.pp(i), config, &config.layers[i]);
        Ok(Self {
            embedding,
            blocks: (0..blocks).map(block).collect::<Result<_, _>>()?,
            ropes: config.ropes.iter().cloned().map(Rope::new).collect(),
            rope_of: config.layers.iter().map(|layer| layer.rope).collect(),
            norm: norm.transpose()?,
            head: head.transpose()?,
        })
    }

    /// Computes until every hook was handed out.
    pub fn forward(
        &self,
        ids: &[u32],
        (spans, past): (&[Span], &mut Past<'_>),
        tape: &mut Tape,
    ) -> Result<(), Halt> {
        let device = self.embedding.table.device();
        let angles = self.ropes.iter().map(|rope| rope.angles(spans, device));
        let angles: Vec<Angles> = angles.collect::<Result<_, _>>()?;
        let mut x = self.embedding.forward(ids, spans, tape)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            tape.enter(Some(layer));
            x = tape.at(Point::ResidPre, x)?;
            let angles = self.rope_of[layer].map(|rope| &angles[rope]);
            x = block.forward(&x, Place { spans, angles, past }, tape)?;
        }
        tape.enter(Some(self.blocks.len()));
        x = tape.at(Point::ResidPre, x)?;
        tape.enter(None);
        if let Some(norm) = &self.norm {
            x = tape.at(Point::FinalNorm, norm.forward(&x)?)?;
        }
        if let Some((head, config)) = &self.head
            && tape.wants(Point::Logits)
        {
            tape.at(Point::Logits, config.scores(head.forward(&x)?)?)?;
        }
        Ok(())
    }

    /// What is added to the logits for directions of the residual stream before the last norm, without
    /// the norm's division.
    pub fn lens(&self, directions: &Tensor) -> candle_core::Result<Tensor> {
        let Some((head, config)) = &self.head else {
            candle_core::bail!("the head was not loaded");
        };
        let normed = self.norm.as_ref().map(|norm| norm.linear(directions)).transpose()?;
        let products = head.forward(normed.as_ref().unwrap_or(directions))?;
        config.divisor.map_or(Ok(products.clone()), |divisor| products / divisor)
    }
}

impl Embedding {
    fn load(base: &Weights, c: &Config) -> Result<Self, ModelError> {
        let table = |name: &str, n| base.pp(name).get("weight", &[n, c.d_model]);
        let norm = |name: &str| Norm::load(&base.pp(name), c.d_model, c.norm);
        Ok(Self {
            table: table(c.names.embed, c.vocab_size)?,
            positions: c.names.positions.map(|name| table(name, c.context)).transpose()?,
            norm: c.names.embed_norm.map(norm).transpose()?,
            layered: c.names.embedded.is_some(),
            scales: c.embed,
        })
    }

    fn forward(&self, ids: &[u32], spans: &[Span], tape: &mut Tape) -> Result<Tensor, Halt> {
        let device = self.table.device();
        let mut x = self.table.index_select(&Tensor::new(ids, device)?, 0)?;
        if self.layered {
            x = tape.at(Point::WordEmbed, x)?;
        }
        if let Some(positions) = &self.positions {
            let places = spans.iter().flat_map(|s| s.offset() as u32..s.keys.len() as u32);
            let places = Tensor::new(places.collect::<Vec<u32>>(), device)?;
            let positions = tape.at(Point::PositionEmbed, positions.index_select(&places, 0)?)?;
            x = (x + positions)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if let Some(scale) = self.scales.scale {
            x = (x * scale)?;
        }
        x = tape.at(Point::Embed, x)?;
        match self.scales.after {
            Some(scale) => Ok((x * scale)?),
            None => Ok(x),
        }
    }
}

fn load_head(
    weights: &Weights,
    c: &Config,
    (head, table): (Head, &Tensor),
) -> Result<(Linear, Head), ModelError> {
    if head.tied {
        let stored = Stored { weight: table.clone(), bias: None };
        return Ok((Linear::new(stored, weights)?, head));
    }
    let inner = weights.pp("language_model").pp(c.names.head);
    let own = weights.pp(c.names.head);
    let at = if inner.contains("weight") { inner } else { own };
    Ok((Linear::load(&at, (c.d_model, c.vocab_size), false)?, head))
}

impl Head {
    /// Products to scores.
    fn scores(self, mut x: Tensor) -> candle_core::Result<Tensor> {
        if let Some(divisor) = self.divisor {
            x = (x / divisor)?;
        }
        match self.cap {
            Some(cap) => (x / cap)?.tanh()? * cap,
            None => Ok(x),
        }
    }
}
