//! BERT-style encoders: learned positions, attention in both directions, norm after each sum.
//!
//! Tensors of sentence encoders carry no `bert.` prefix. Token types are all zero: there is one
//! sentence.

use candle_core::{DType, Tensor};

use super::{
    ModelError,
    block::{
        attention::{Attention, Place},
        exit::{self, Exit},
        linear::Linear,
        mlp::{Kind, Mlp},
        norm::{Norm, NormConfig, NormKind},
    },
    cache::Past,
    config_file::ConfigFile,
    hook::Hook,
    packed::Packed,
    site::{Point, Site, Width},
    tape::{Halt, Tape},
    weights::Weights,
};
use crate::kernels::{
    activation::Activation,
    attention::{Heads, Scoring, Sees, Span},
};

/// Point, module path, other paths of the same tensor, TransformerLens name, what it is.
type Row = (Point, &'static str, &'static [&'static str], &'static str, &'static str);

const SITES: [Row; 15] = [
    (Point::WordEmbed, "@embeddings.word_embeddings", &[], "embed.hook_embed", "token embedding"),
    (
        Point::TokenTypeEmbed,
        "@embeddings.token_type_embeddings",
        &[],
        "embed.hook_token_type_embed",
        "embedding of token type 0, the same in every row",
    ),
    (
        Point::PositionEmbed,
        "@embeddings.position_embeddings",
        &[],
        "embed.hook_pos_embed",
        "position embedding",
    ),
    (
        Point::EmbedSum,
        "@embeddings.LayerNorm#in",
        &[],
        "embed.ln.hook_in",
        "sum of the embeddings before their norm",
    ),
    (
        Point::Embed,
        "@embeddings",
        &["@embeddings.LayerNorm", "embed"],
        "hook_full_embed",
        "embeddings after their norm: what enters the first block",
    ),
    (
        Point::ResidPre,
        "@encoder.layer.{}#in",
        &["@encoder.layer.{}.attention#in", "@encoder.layer.{}.attention.self#in"],
        "blocks.{}.hook_resid_pre",
        "input of the block (normalised: the previous block ends with a norm)",
    ),
    (
        Point::Z,
        "@encoder.layer.{}.attention.self",
        &["@encoder.layer.{}.attention.output.dense#in"],
        "blocks.{}.attn.hook_z",
        "mix of values per head, heads side by side, before the output projection",
    ),
    (
        Point::AttnOut,
        "@encoder.layer.{}.attention.output.dense",
        &[],
        "blocks.{}.hook_attn_out",
        "what the attention adds",
    ),
    (
        Point::ResidMid,
        "@encoder.layer.{}.attention.output.LayerNorm#in",
        &[],
        "blocks.{}.hook_resid_mid",
        "sum of the block's input and the attention, before the norm",
    ),
    (
        Point::MlpIn,
        "@encoder.layer.{}.attention.output",
        &[
            "@encoder.layer.{}.attention",
            "@encoder.layer.{}.attention.output.LayerNorm",
            "@encoder.layer.{}.intermediate#in",
        ],
        "blocks.{}.ln1.hook_normalized",
        "normalised resid_mid: what the feed-forward block reads and is added to",
    ),
    (
        Point::MlpAct,
        "@encoder.layer.{}.intermediate",
        &[
            "@encoder.layer.{}.intermediate.intermediate_act_fn",
            "@encoder.layer.{}.output.dense#in",
        ],
        "blocks.{}.mlp.hook_post",
        "inner activation of the feed-forward block",
    ),
    (
        Point::MlpOut,
        "@encoder.layer.{}.output.dense",
        &[],
        "blocks.{}.hook_mlp_out",
        "what the feed-forward block adds",
    ),
    (
        Point::ResidSum,
        "@encoder.layer.{}.output.LayerNorm#in",
        &[],
        "blocks.{}.hook_resid_post",
        "sum after the feed-forward block, before the norm that ends the block \
               (TransformerLens calls this one hook_resid_post)",
    ),
    (
        Point::ResidPost,
        "@encoder.layer.{}",
        &["@encoder.layer.{}.output", "@encoder.layer.{}.output.LayerNorm"],
        "blocks.{}.hook_normalized_resid_post",
        "output of the block, after its norm",
    ),
    (
        Point::Pooler,
        "@pooler",
        &["@pooler.activation"],
        "pooler.hook_out",
        "pooler, applied to every row; the model itself reads a sentence's first row only",
    ),
];

/// The hook points.
pub(super) fn sites() -> Vec<Site> {
    let width = |point| match point {
        Point::Z => Width::Heads,
        Point::MlpAct => Width::Mlp,
        _ => Width::Model,
    };
    let site = |(point, path, also, lens, what): Row| {
        Site::new(point, path, lens, what).also(also.iter().copied()).wide(width(point))
    };
    SITES.into_iter().map(site).collect()
}

/// An encoder's settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the class puts before its base model's modules.
    pub base: &'static str,
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_layers: usize,
    pub heads: Heads,
    pub vocab_size: usize,
    pub types: usize,
    /// Rows of the table of positions.
    pub positions: usize,
    /// The token whose row of that table is its own id; the others count from behind it.
    pub padding: Option<u32>,
    pub eps: f64,
    pub act: Activation,
}

impl Config {
    /// What BERT's keys say.
    ///
    /// # Errors
    /// A key that is missing or has a value that no model has.
    pub fn bert(file: &ConfigFile) -> Result<Self, ModelError> {
        let (d_model, heads) = (file.size("hidden_size")?, file.size("num_attention_heads")?);
        file.divides("num_attention_heads", heads, ("hidden_size", d_model))?;
        Ok(Self {
            base: "bert",
            d_model,
            d_mlp: file.size("intermediate_size")?,
            n_layers: file.size("num_hidden_layers")?,
            heads: Heads { heads, kv_heads: heads, d: d_model / heads },
            vocab_size: file.size("vocab_size")?,
            types: file.maybe_size("type_vocab_size")?.unwrap_or(2),
            positions: file.size("max_position_embeddings")?,
            padding: None,
            eps: file.positive_or("layer_norm_eps", 1e-12)?,
            act: file.activation("hidden_act", "gelu")?,
        })
    }

    /// Tokens of the longest sentence.
    pub fn context(&self) -> usize {
        self.positions - self.padding.map_or(0, |padding| padding as usize + 1)
    }

    /// Weights of the base model with its pooler.
    pub fn parameters(&self) -> u64 {
        let [d, mlp, layers] = [self.d_model, self.d_mlp, self.n_layers].map(|n| n as u64);
        let embeddings = (self.vocab_size + self.types + self.positions) as u64 * d + 2 * d;
        let block = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d;
        embeddings + layers * block + d * d + d
    }

    /// Multiplications by weights that a block costs each token.
    pub fn products(&self) -> f64 {
        (4 * self.d_model * self.d_model + 2 * self.d_model * self.d_mlp) as f64
    }
}

struct Block {
    attn: Attention,
    attn_norm: Norm,
    mlp: Mlp,
    mlp_norm: Norm,
}

impl Block {
    fn load(w: &Weights, c: &Config) -> Result<Self, ModelError> {
        let d = c.d_model;
        let linear = |name, sizes| Linear::load(&w.pp(name), sizes, true);
        let norm = |name| Norm::load(&w.pp(name), d, norm(c));
        let exit = |points| Exit { norm: None, scale: None, points };
        Ok(Self {
            attn: Attention {
                q: linear("attention.self.query", (d, d))?,
                k: linear("attention.self.key", (d, d))?,
                v: linear("attention.self.value", (d, d))?,
                norms: None,
                clip: None,
                heads: c.heads,
                scoring: Scoring {
                    scale: (c.heads.d as f32).sqrt().recip(),
                    cap: None,
                    sees: Sees::ALL,
                },
                o: linear("attention.output.dense", (d, d))?,
                exit: exit(exit::OF_ATTENTION),
            },
            attn_norm: norm("attention.output.LayerNorm")?,
            mlp: Mlp {
                kind: Kind::Plain {
                    up: linear("intermediate.dense", (d, c.d_mlp))?,
                    act: c.act,
                    down: linear("output.dense", (c.d_mlp, d))?,
                },
                exit: exit(exit::OF_MLP),
            },
            mlp_norm: norm("output.LayerNorm")?,
        })
    }

    fn forward(&self, x: &Tensor, place: Place<'_, '_>, tape: &mut Tape) -> Result<Tensor, Halt> {
        let sum = self.attn.add_onto(x, x, place, tape)?;
        let sum = tape.at(Point::ResidMid, sum)?;
        let x = tape.at(Point::MlpIn, self.attn_norm.forward(&sum)?)?;
        let sum = self.mlp.add_onto(&x, &x, tape)?;
        let sum = tape.at(Point::ResidSum, sum)?;
        tape.at(Point::ResidPost, self.mlp_norm.forward(&sum)?)
    }
}

fn norm(c: &Config) -> NormConfig {
    NormConfig { kind: NormKind::Layer { bias: true }, eps: c.eps }
}

/// An encoder, loaded as deep as its hooks need.
pub struct Encoder {
    words: Tensor,
    positions: Tensor,
    padding: Option<u32>,
    types: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
}

impl Encoder {
    pub fn load(
        weights: &Weights,
        config: &Config,
        hooks: &[Hook],
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let base = if weights.contains("embeddings.word_embeddings.weight") {
            weights.clone()
        } else {
            weights.pp(config.base)
        };
        let (d, embeddings) = (config.d_model, base.pp("embeddings"));
        let table = |name: &str, n| embeddings.pp(name).get("weight", &[n, d]);
        let layers = base.pp("encoder.layer");
        let pooler = hooks
            .iter()
            .any(|h| h.point == Point::Pooler)
            .then(|| Linear::load(&base.pp("pooler.dense"), (d, d), true));
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.positions)?,
            padding: config.padding,
            types: table("token_type_embeddings", config.types)?,
            norm: Norm::load(&embeddings.pp("LayerNorm"), d, norm(config))?,
            blocks: (0..blocks)
                .map(|i| Block::load(&layers.pp(i), config))
                .collect::<Result<_, _>>()?,
            pooler: pooler.transpose()?,
        })
    }

    /// Computes until every hook was handed out.
    pub fn forward(&self, batch: &Packed, spans: &[Span], tape: &mut Tape) -> Result<(), Halt> {
        let device = self.words.device();
        let words = self.words.index_select(&Tensor::new(batch.ids.as_slice(), device)?, 0)?;
        let words = tape.at(Point::WordEmbed, words)?;
        let types =
            self.types.index_select(&Tensor::zeros(batch.rows(), DType::U32, device)?, 0)?;
        let types = tape.at(Point::TokenTypeEmbed, types)?;
        let places = Tensor::new(self.places(batch), device)?;
        let positions = tape.at(Point::PositionEmbed, self.positions.index_select(&places, 0)?)?;
        let sum = tape.at(Point::EmbedSum, ((words + types)? + positions)?)?;
        let mut x = tape.at(Point::Embed, self.norm.forward(&sum)?)?;
        let past = &mut Past::new(None, spans);
        for (layer, block) in self.blocks.iter().enumerate() {
            tape.enter(Some(layer));
            x = tape.at(Point::ResidPre, x)?;
            x = block.forward(&x, Place { spans, angles: None, past }, tape)?;
        }
        tape.enter(Some(self.blocks.len()));
        x = tape.at(Point::ResidPre, x)?;
        tape.enter(None);
        if let Some(pooler) = &self.pooler {
            tape.at(Point::Pooler, pooler.forward(&x)?.tanh()?)?;
        }
        Ok(())
    }

    /// Each token's row in the table of positions.
    fn places(&self, batch: &Packed) -> Vec<u32> {
        let Some(padding) = self.padding else { return batch.positions() };
        let mut places = Vec::with_capacity(batch.rows());
        for w in batch.starts.windows(2) {
            let mut last = padding;
            places.extend(batch.ids[w[0]..w[1]].iter().map(|id| {
                if *id == padding {
                    return padding;
                }
                last += 1;
                last
            }));
        }
        places
    }
}
