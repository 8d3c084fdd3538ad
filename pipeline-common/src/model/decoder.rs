//! The decoder that Llama and its relatives share: norm before each block, rotary positions,
//! grouped-query attention, gated feed-forward block.

use candle_core::Tensor;
use serde::Deserialize;

use super::{
    ModelError,
    block::{
        attention::Attention,
        linear::Linear,
        mlp::GatedMlp,
        norm::RmsNorm,
        rope::{Angles, Rope, RopeJson, Scaling},
    },
    config_file::ConfigFile,
    hook::Hook,
    packed::Packed,
    site::{Point, Site, Width},
    tape::{Halt, Tape},
    weights::Weights,
};
use crate::kernels::{activation::Activation, attention::Heads};

/// The hook points of a decoder.
pub(super) const SITES: &[Site] = &[
    Site {
        point: Point::Embed,
        path: "@embed_tokens",
        also: &[],
        lens: "hook_embed",
        width: Width::Model,
        what: "token embedding: start of the residual stream",
    },
    Site {
        point: Point::ResidPre,
        path: "@layers.{}#in",
        also: &["@layers.{}.input_layernorm#in"],
        lens: "blocks.{}.hook_resid_pre",
        width: Width::Model,
        what: "residual stream before the block",
    },
    Site {
        point: Point::AttnIn,
        path: "@layers.{}.input_layernorm",
        also: &["@layers.{}.self_attn#in"],
        lens: "blocks.{}.ln1.hook_normalized",
        width: Width::Model,
        what: "normalised copy of resid_pre that feeds the attention, norm weight applied",
    },
    Site {
        point: Point::Z,
        path: "@layers.{}.self_attn.o_proj#in",
        also: &[],
        lens: "blocks.{}.attn.hook_z",
        width: Width::Heads,
        what: "mix of values per head, heads side by side, before the output projection",
    },
    Site {
        point: Point::AttnOut,
        path: "@layers.{}.self_attn",
        also: &["@layers.{}.self_attn.o_proj"],
        lens: "blocks.{}.hook_attn_out",
        width: Width::Model,
        what: "what the attention adds to the residual stream",
    },
    Site {
        point: Point::ResidMid,
        path: "@layers.{}.post_attention_layernorm#in",
        also: &[],
        lens: "blocks.{}.hook_resid_mid",
        width: Width::Model,
        what: "residual stream between attention and feed-forward block",
    },
    Site {
        point: Point::MlpIn,
        path: "@layers.{}.post_attention_layernorm",
        also: &["@layers.{}.mlp#in", "@layers.{}.mlp.gate_proj#in", "@layers.{}.mlp.up_proj#in"],
        lens: "blocks.{}.ln2.hook_normalized",
        width: Width::Model,
        what: "normalised copy of resid_mid that feeds the feed-forward block, norm weight applied; \
               not the residual stream",
    },
    Site {
        point: Point::MlpGate,
        path: "@layers.{}.mlp.act_fn",
        also: &[],
        lens: "blocks.{}.mlp.act_fn.hook_out",
        width: Width::Mlp,
        what: "gate after the activation function, before it multiplies the other projection",
    },
    Site {
        point: Point::MlpAct,
        path: "@layers.{}.mlp.down_proj#in",
        also: &[],
        lens: "blocks.{}.mlp.hook_post",
        width: Width::Mlp,
        what: "inner activation of the feed-forward block: gate times the other projection",
    },
    Site {
        point: Point::MlpOut,
        path: "@layers.{}.mlp",
        also: &["@layers.{}.mlp.down_proj"],
        lens: "blocks.{}.hook_mlp_out",
        width: Width::Model,
        what: "what the feed-forward block adds to the residual stream",
    },
    Site {
        point: Point::ResidPost,
        path: "@layers.{}",
        also: &["@norm#in"],
        lens: "blocks.{}.hook_resid_post",
        width: Width::Model,
        what: "residual stream after the block",
    },
    Site {
        point: Point::FinalNorm,
        path: "@norm",
        also: &["lm_head#in"],
        lens: "ln_final.hook_normalized",
        width: Width::Model,
        what: "normalised residual stream after the last block",
    },
    Site {
        point: Point::Logits,
        path: "lm_head",
        also: &["logits"],
        lens: "unembed.hook_out",
        width: Width::Vocab,
        what: "scores of the next token",
    },
];

/// The keys of `config.json` that families of this shape share.
#[derive(Deserialize)]
pub(super) struct DecoderJson {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    vocab_size: usize,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    tie_word_embeddings: Option<bool>,
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
}

fn silu() -> String {
    "silu".to_owned()
}

fn eps() -> f64 {
    1e-6
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Output projection of the attention.
    pub o: bool,
    /// All three of the feed-forward block.
    pub mlp: bool,
}

/// A decoder's settings, checked.
#[derive(Clone, Debug)]
pub(super) struct DecoderConfig {
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_layers: usize,
    pub heads: Heads,
    pub vocab_size: usize,
    pub context: usize,
    pub eps: f64,
    pub act: Activation,
    pub theta: f64,
    pub scaling: Scaling,
    pub tied: bool,
    pub biases: Biases,
}

impl DecoderJson {
    /// Checks the settings; `biases` is what the family decides for itself.
    pub fn checked(self, biases: Biases, file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
        let heads = self.num_attention_heads;
        file.sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", self.num_key_value_heads.unwrap_or(heads)),
            ("vocab_size", self.vocab_size),
        ])?;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        file.divides("num_key_value_heads", kv_heads, ("num_attention_heads", heads))?;
        if self.head_dim.is_none() {
            file.divides("num_attention_heads", heads, ("hidden_size", self.hidden_size))?;
        }
        let d = self.head_dim.unwrap_or(self.hidden_size / heads);
        file.sizes(&[("head_dim", d)])?;
        if !d.is_multiple_of(2) {
            return Err(file.unsupported("head_dim", d, "an even number"));
        }
        let (key, rope) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(rope), _) => ("rope_parameters", rope.clone()),
            (None, rope) => ("rope_scaling", rope.clone().unwrap_or_default()),
        };
        Ok(DecoderConfig {
            d_model: self.hidden_size,
            d_mlp: self.intermediate_size,
            n_layers: self.num_hidden_layers,
            heads: Heads { heads, kv_heads, d, causal: true },
            vocab_size: self.vocab_size,
            context: self.max_position_embeddings,
            eps: self.rms_norm_eps,
            act: file.activation(&self.hidden_act)?,
            theta: rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0),
            scaling: rope.scaling(file, key)?,
            tied: self.tie_word_embeddings.unwrap_or(false),
            biases,
        })
    }
}

/// Weights of the whole model.
pub(super) fn parameters(c: &DecoderConfig) -> u64 {
    let [d, mlp, layers, vocab] = [c.d_model, c.d_mlp, c.n_layers, c.vocab_size].map(|n| n as u64);
    let [q, kv] = [c.heads.heads, c.heads.kv_heads].map(|n| (n * c.heads.d) as u64);
    let bias = |has: bool, n: u64| if has { n } else { 0 };
    let attention = d * (2 * q + 2 * kv) + bias(c.biases.qkv, q + 2 * kv) + bias(c.biases.o, d);
    let feed_forward = 3 * d * mlp + bias(c.biases.mlp, 2 * mlp + d);
    let embeddings = vocab * d * if c.tied { 1 } else { 2 };
    layers * (attention + feed_forward + 2 * d) + embeddings + d
}

struct Block {
    attn_norm: RmsNorm,
    attn: Attention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    fn load(w: &Weights, c: &DecoderConfig) -> Result<Self, ModelError> {
        let (d, heads) = (c.d_model, c.heads);
        let (q, kv) = (heads.heads * heads.d, heads.kv_heads * heads.d);
        let attn = w.pp("self_attn");
        let linear = |w: &Weights, name, sizes, bias| Linear::load(&w.pp(name), sizes, bias);
        Ok(Self {
            attn_norm: RmsNorm::load(&w.pp("input_layernorm"), d, c.eps)?,
            attn: Attention {
                q: linear(&attn, "q_proj", (d, q), c.biases.qkv)?,
                k: linear(&attn, "k_proj", (d, kv), c.biases.qkv)?,
                v: linear(&attn, "v_proj", (d, kv), c.biases.qkv)?,
                o: linear(&attn, "o_proj", (q, d), c.biases.o)?,
                heads,
            },
            mlp_norm: RmsNorm::load(&w.pp("post_attention_layernorm"), d, c.eps)?,
            mlp: GatedMlp::load(&w.pp("mlp"), (d, c.d_mlp), c.biases.mlp, c.act)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        starts: &[usize],
        angles: &Angles,
        tape: &mut Tape,
    ) -> Result<Tensor, Halt> {
        let normed = tape.at(Point::AttnIn, self.attn_norm.forward(x)?)?;
        let x = self.attn.add_onto(x, &normed, starts, Some(angles), tape)?;
        let x = tape.at(Point::ResidMid, x)?;
        let normed = tape.at(Point::MlpIn, self.mlp_norm.forward(&x)?)?;
        let x = self.mlp.add_onto(&x, &normed, tape)?;
        tape.at(Point::ResidPost, x)
    }
}

/// A decoder, loaded as deep as its hooks need.
pub(super) struct Decoder {
    embed: Tensor,
    blocks: Vec<Block>,
    rope: Rope,
    norm: Option<RmsNorm>,
    head: Option<Linear>,
}

impl Decoder {
    pub fn load(
        weights: &Weights,
        config: &DecoderConfig,
        hooks: &[Hook],
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let base = if weights.contains("embed_tokens.weight") {
            weights.clone()
        } else {
            weights.pp("model")
        };
        let wants = |point| hooks.iter().any(|h| h.point == point);
        let embed = base.pp("embed_tokens").get("weight", &[config.vocab_size, config.d_model])?;
        let head = || match config.tied {
            true => Linear::tied(embed.clone(), weights),
            false => {
                Linear::load(&weights.pp("lm_head"), (config.d_model, config.vocab_size), false)
            }
        };
        let head = wants(Point::Logits).then(head).transpose()?;
        let norm = (head.is_some() || wants(Point::FinalNorm))
            .then(|| RmsNorm::load(&base.pp("norm"), config.d_model, config.eps))
            .transpose()?;
        let layers = base.pp("layers");
        let blocks =
            (0..blocks).map(|i| Block::load(&layers.pp(i), config)).collect::<Result<_, _>>()?;
        let rope = Rope::new(config.heads.d, config.theta, config.scaling);
        Ok(Self { embed, blocks, rope, norm, head })
    }

    /// Computes until every hook was handed out.
    pub fn forward(&self, batch: &Packed, tape: &mut Tape) -> Result<(), Halt> {
        let device = self.embed.device();
        let ids = Tensor::new(batch.ids.as_slice(), device)?;
        let angles = self.rope.angles(&batch.positions(), device)?;
        let mut x = tape.at(Point::Embed, self.embed.index_select(&ids, 0)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            tape.enter(Some(layer));
            x = tape.at(Point::ResidPre, x)?;
            x = block.forward(&x, &batch.starts, &angles, tape)?;
        }
        tape.enter(Some(self.blocks.len()));
        x = tape.at(Point::ResidPre, x)?;
        tape.enter(None);
        if let Some(norm) = &self.norm {
            x = tape.at(Point::FinalNorm, norm.forward(&x)?)?;
        }
        if let Some(head) = &self.head {
            tape.at(Point::Logits, head.forward(&x)?)?;
        }
        Ok(())
    }
}
