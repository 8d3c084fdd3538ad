//! BERT-style encoders: learned positions, attention in both directions, norm after each sum.
//!
//! Sentence encoders such as all-MiniLM-L6-v2 are of this kind; their tensors carry no `bert.`
//! prefix. Token types are all zero: there is one sentence.

use candle_core::Tensor;
use serde::Deserialize;

use super::{
    ModelError,
    block::{attention::Attention, linear::Linear, mlp::Mlp, norm::LayerNorm},
    config_file::ConfigFile,
    hook::Hook,
    packed::Packed,
    site::{Point, Site, Width},
    tape::{Halt, Tape},
    weights::Weights,
};
use crate::kernels::{activation::Activation, attention::Heads};

/// The hook points of a BERT encoder.
pub(super) const SITES: &[Site] = &[
    Site {
        point: Point::WordEmbed,
        path: "@embeddings.word_embeddings",
        also: &[],
        lens: "embed.hook_embed",
        width: Width::Model,
        what: "token embedding",
    },
    Site {
        point: Point::TokenTypeEmbed,
        path: "@embeddings.token_type_embeddings",
        also: &[],
        lens: "embed.hook_token_type_embed",
        width: Width::Model,
        what: "embedding of token type 0, the same in every row",
    },
    Site {
        point: Point::PositionEmbed,
        path: "@embeddings.position_embeddings",
        also: &[],
        lens: "embed.hook_pos_embed",
        width: Width::Model,
        what: "position embedding",
    },
    Site {
        point: Point::EmbedSum,
        path: "@embeddings.LayerNorm#in",
        also: &[],
        lens: "embed.ln.hook_in",
        width: Width::Model,
        what: "sum of the embeddings before their norm",
    },
    Site {
        point: Point::Embed,
        path: "@embeddings",
        also: &["@embeddings.LayerNorm"],
        lens: "hook_full_embed",
        width: Width::Model,
        what: "embeddings after their norm: what enters the first block",
    },
    Site {
        point: Point::ResidPre,
        path: "@encoder.layer.{}#in",
        also: &["@encoder.layer.{}.attention#in", "@encoder.layer.{}.attention.self#in"],
        lens: "blocks.{}.hook_resid_pre",
        width: Width::Model,
        what: "input of the block (normalised: the previous block ends with a norm)",
    },
    Site {
        point: Point::Z,
        path: "@encoder.layer.{}.attention.self",
        also: &["@encoder.layer.{}.attention.output.dense#in"],
        lens: "blocks.{}.attn.hook_z",
        width: Width::Heads,
        what: "mix of values per head, heads side by side, before the output projection",
    },
    Site {
        point: Point::AttnOut,
        path: "@encoder.layer.{}.attention.output.dense",
        also: &[],
        lens: "blocks.{}.hook_attn_out",
        width: Width::Model,
        what: "what the attention adds",
    },
    Site {
        point: Point::ResidMid,
        path: "@encoder.layer.{}.attention.output.LayerNorm#in",
        also: &[],
        lens: "blocks.{}.hook_resid_mid",
        width: Width::Model,
        what: "sum of the block's input and the attention, before the norm",
    },
    Site {
        point: Point::MlpIn,
        path: "@encoder.layer.{}.attention.output",
        also: &[
            "@encoder.layer.{}.attention",
            "@encoder.layer.{}.attention.output.LayerNorm",
            "@encoder.layer.{}.intermediate#in",
        ],
        lens: "blocks.{}.ln1.hook_normalized",
        width: Width::Model,
        what: "normalised resid_mid: what the feed-forward block reads and is added to",
    },
    Site {
        point: Point::MlpAct,
        path: "@encoder.layer.{}.intermediate",
        also: &[
            "@encoder.layer.{}.intermediate.intermediate_act_fn",
            "@encoder.layer.{}.output.dense#in",
        ],
        lens: "blocks.{}.mlp.hook_post",
        width: Width::Mlp,
        what: "inner activation of the feed-forward block",
    },
    Site {
        point: Point::MlpOut,
        path: "@encoder.layer.{}.output.dense",
        also: &[],
        lens: "blocks.{}.hook_mlp_out",
        width: Width::Model,
        what: "what the feed-forward block adds",
    },
    Site {
        point: Point::ResidSum,
        path: "@encoder.layer.{}.output.LayerNorm#in",
        also: &[],
        lens: "blocks.{}.hook_resid_post",
        width: Width::Model,
        what: "sum after the feed-forward block, before the norm that ends the block \
               (TransformerLens calls this one hook_resid_post)",
    },
    Site {
        point: Point::ResidPost,
        path: "@encoder.layer.{}",
        also: &["@encoder.layer.{}.output", "@encoder.layer.{}.output.LayerNorm"],
        lens: "blocks.{}.hook_normalized_resid_post",
        width: Width::Model,
        what: "output of the block, after its norm",
    },
    Site {
        point: Point::Pooler,
        path: "@pooler",
        also: &["@pooler.activation"],
        lens: "pooler.hook_out",
        width: Width::Model,
        what: "pooler, applied to every row; the model itself reads a sentence's first row only",
    },
];

/// The keys of `config.json`.
#[derive(Deserialize)]
pub(super) struct BertJson {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    vocab_size: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
}

fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn eps() -> f64 {
    1e-12
}

/// An encoder's settings, checked.
#[derive(Clone, Debug)]
pub(super) struct BertConfig {
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_layers: usize,
    pub heads: Heads,
    pub vocab_size: usize,
    pub types: usize,
    pub context: usize,
    pub eps: f64,
    pub act: Activation,
}

/// Checks the settings.
pub(super) fn config(json: BertJson, file: &ConfigFile) -> Result<BertConfig, ModelError> {
    file.refuse_unless("position_embedding_type", &["\"absolute\""])?;
    let heads = json.num_attention_heads;
    file.sizes(&[
        ("hidden_size", json.hidden_size),
        ("intermediate_size", json.intermediate_size),
        ("num_hidden_layers", json.num_hidden_layers),
        ("num_attention_heads", heads),
        ("max_position_embeddings", json.max_position_embeddings),
        ("vocab_size", json.vocab_size),
        ("type_vocab_size", json.type_vocab_size),
    ])?;
    file.divides("num_attention_heads", heads, ("hidden_size", json.hidden_size))?;
    let d = json.hidden_size / heads;
    Ok(BertConfig {
        d_model: json.hidden_size,
        d_mlp: json.intermediate_size,
        n_layers: json.num_hidden_layers,
        heads: Heads { heads, kv_heads: heads, d, causal: false },
        vocab_size: json.vocab_size,
        types: json.type_vocab_size,
        context: json.max_position_embeddings,
        eps: json.layer_norm_eps,
        act: file.activation(&json.hidden_act)?,
    })
}

/// Weights of the base model with its pooler.
pub(super) fn parameters(c: &BertConfig) -> u64 {
    let [d, mlp, layers] = [c.d_model, c.d_mlp, c.n_layers].map(|n| n as u64);
    let embeddings = (c.vocab_size + c.types + c.context) as u64 * d + 2 * d;
    let block = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d;
    embeddings + layers * block + d * d + d
}

struct Block {
    attn: Attention,
    attn_norm: LayerNorm,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

impl Block {
    fn load(w: &Weights, c: &BertConfig) -> Result<Self, ModelError> {
        let d = c.d_model;
        let linear = |name, sizes| Linear::load(&w.pp(name), sizes, true);
        Ok(Self {
            attn: Attention {
                q: linear("attention.self.query", (d, d))?,
                k: linear("attention.self.key", (d, d))?,
                v: linear("attention.self.value", (d, d))?,
                o: linear("attention.output.dense", (d, d))?,
                heads: c.heads,
            },
            attn_norm: LayerNorm::load(&w.pp("attention.output.LayerNorm"), d, c.eps)?,
            mlp: Mlp {
                up: linear("intermediate.dense", (d, c.d_mlp))?,
                down: linear("output.dense", (c.d_mlp, d))?,
                act: c.act,
            },
            mlp_norm: LayerNorm::load(&w.pp("output.LayerNorm"), d, c.eps)?,
        })
    }

    fn forward(&self, x: &Tensor, starts: &[usize], tape: &mut Tape) -> Result<Tensor, Halt> {
        let sum = self.attn.add_onto(x, x, starts, None, tape)?;
        let sum = tape.at(Point::ResidMid, sum)?;
        let x = tape.at(Point::MlpIn, self.attn_norm.forward(&sum)?)?;
        let sum = self.mlp.add_onto(&x, &x, tape)?;
        let sum = tape.at(Point::ResidSum, sum)?;
        tape.at(Point::ResidPost, self.mlp_norm.forward(&sum)?)
    }
}

/// An encoder, loaded as deep as its hooks need.
pub(super) struct Bert {
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
}

impl Bert {
    pub fn load(
        weights: &Weights,
        config: &BertConfig,
        hooks: &[Hook],
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let base = if weights.contains("embeddings.word_embeddings.weight") {
            weights.clone()
        } else {
            weights.pp("bert")
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
            positions: table("position_embeddings", config.context)?,
            types: table("token_type_embeddings", config.types)?,
            norm: LayerNorm::load(&embeddings.pp("LayerNorm"), d, config.eps)?,
            blocks: (0..blocks)
                .map(|i| Block::load(&layers.pp(i), config))
                .collect::<Result<_, _>>()?,
            pooler: pooler.transpose()?,
        })
    }

    /// Computes until every hook was handed out.
    pub fn forward(&self, batch: &Packed, tape: &mut Tape) -> Result<(), Halt> {
        let device = self.words.device();
        let words = self.words.index_select(&Tensor::new(batch.ids.as_slice(), device)?, 0)?;
        let words = tape.at(Point::WordEmbed, words)?;
        let types = self
            .types
            .index_select(&Tensor::zeros(batch.rows(), candle_core::DType::U32, device)?, 0)?;
        let types = tape.at(Point::TokenTypeEmbed, types)?;
        let positions = self.positions.index_select(&Tensor::new(batch.positions(), device)?, 0)?;
        let positions = tape.at(Point::PositionEmbed, positions)?;
        let sum = tape.at(Point::EmbedSum, ((words + types)? + positions)?)?;
        let mut x = tape.at(Point::Embed, self.norm.forward(&sum)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            tape.enter(Some(layer));
            x = tape.at(Point::ResidPre, x)?;
            x = block.forward(&x, &batch.starts, tape)?;
        }
        tape.enter(Some(self.blocks.len()));
        x = tape.at(Point::ResidPre, x)?;
        tape.enter(None);
        if let Some(pooler) = &self.pooler {
            tape.at(Point::Pooler, pooler.forward(&x)?.tanh()?)?;
        }
        Ok(())
    }
}
