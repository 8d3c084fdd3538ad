//! What families differ in, a few choices for each part of the network.

use super::super::{
    ModelError,
    block::{
        attention::QkNorm,
        norm::{NormConfig, NormKind},
        rope::{RopeConfig, Source},
    },
    config_file::ConfigFile,
};
use crate::kernels::{
    activation::Activation,
    attention::{Heads, Sees},
};

/// A network, described.
#[derive(Clone, Debug)]
pub struct Config {
    pub names: Names,
    pub d_model: usize,
    pub vocab_size: usize,
    /// Positions.
    pub context: usize,
    pub embed: Embed,
    pub norm: NormConfig,
    pub attention: AttentionConfig,
    pub mlp: MlpConfig,
    pub residual: Residual,
    pub layers: Vec<Layer>,
    pub ropes: Vec<RopeConfig>,
    /// None where the class scores no tokens, or in a way of its own.
    pub head: Option<Head>,
}

/// Names of modules, as the checkpoint's tensors and the hooks have them.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// What the class puts before its base model's modules.
    pub base: &'static str,
    pub embed: &'static str,
    /// Table of learned positions.
    pub positions: Option<&'static str>,
    pub embed_norm: Option<&'static str>,
    /// The module that ends the embedding, where it is not the table.
    pub embedded: Option<&'static str>,
    pub layers: &'static str,
    pub attn: AttnNames,
    pub mlp: MlpNames,
    pub norm: &'static str,
    pub head: &'static str,
    /// Whether the weights of linear layers are stored [in, out].
    pub transposed: bool,
}

/// Names in a block's first half.
#[derive(Clone, Copy, Debug)]
pub struct AttnNames {
    /// Norm of what the attention reads, if there is one.
    pub before: Option<&'static str>,
    pub module: &'static str,
    pub qkv: Qkv,
    pub o: &'static str,
    /// Norm of what the attention adds, if there is one.
    pub after: Option<&'static str>,
}

/// Where the layers for queries, keys and values are.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// Each by itself.
    Apart([&'static str; 3]),
    /// In one layer: all queries, all keys, all values.
    Joined(&'static str),
    /// In one layer: for each head its query, key and value.
    ByHead(&'static str),
}

/// Names in a block's second half.
#[derive(Clone, Copy, Debug)]
pub struct MlpNames {
    /// Norm of what the feed-forward block reads, if there is one.
    pub before: Option<&'static str>,
    pub module: &'static str,
    pub inner: Inner,
    pub act: &'static str,
    pub down: &'static str,
    /// Norm of what the feed-forward block adds, if there is one.
    pub after: Option<&'static str>,
}

/// The layers that feed the activation function.
#[derive(Clone, Copy, Debug)]
pub enum Inner {
    /// `act(gate(x)) · up(x)` (arXiv:2002.05202).
    Gated { gate: &'static str, up: &'static str },
    /// The same, both in one layer: the gate, then the other.
    Joined(&'static str),
    /// `act(up(x))`.
    Plain(&'static str),
}

/// Llama's names, which most families keep.
pub const LLAMA: Names = Names {
    base: "model",
    embed: "embed_tokens",
    positions: None,
    embed_norm: None,
    embedded: None,
    layers: "layers",
    attn: AttnNames {
        before: Some("input_layernorm"),
        module: "self_attn",
        qkv: Qkv::Apart(["q_proj", "k_proj", "v_proj"]),
        o: "o_proj",
        after: None,
    },
    mlp: MlpNames {
        before: Some("post_attention_layernorm"),
        module: "mlp",
        inner: Inner::Gated { gate: "gate_proj", up: "up_proj" },
        act: "act_fn",
        down: "down_proj",
        after: None,
    },
    norm: "norm",
    head: "lm_head",
    transposed: false,
};

/// Factors of the embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Embed {
    /// Within the embedding's module.
    pub scale: Option<f64>,
    /// Of what the module hands on.
    pub after: Option<f64>,
}

/// What an attention does with its projections.
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f64,
    /// Bound of soft-capped scores.
    pub cap: Option<f64>,
    /// Norm of queries and keys.
    pub norm: Option<QkNorm>,
    /// Bound of queries, keys and values.
    pub clip: Option<f64>,
    pub bias: Biases,
}

/// Which linear layers of an attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Output projection.
    pub o: bool,
}

impl Biases {
    /// All or none.
    pub fn all(bias: bool) -> Self {
        Self { qkv: bias, o: bias }
    }
}

/// A feed-forward block.
#[derive(Clone, Copy, Debug)]
pub struct MlpConfig {
    /// Inner width.
    pub width: usize,
    pub act: Activation,
    pub bias: bool,
    /// In the layers that have them.
    pub experts: Option<Experts>,
}

/// Feed-forward blocks of which each token runs through a few (arXiv:2101.03961, 2401.04088).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    /// Experts of each token.
    pub chosen: usize,
    /// Inner width of one.
    pub width: usize,
    /// Whether the chosen ones' weights are made to sum to one.
    pub normalised: bool,
    /// Inner width of the one that every token runs through.
    pub shared: Option<usize>,
    pub names: ExpertNames,
}

/// Names below a block of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertNames {
    pub module: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// How both halves of a block join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// Whether both read what enters the block, instead of one after the other.
    pub parallel: bool,
    /// Factor of what they add.
    pub scale: Option<f64>,
}

/// What layers of one model differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub sees: Sees,
    /// Index into the rotary positions; none for queries and keys that do not turn.
    pub rope: Option<usize>,
    pub experts: bool,
    /// Whether the norm before the attention leaves everything as it is.
    pub unnormed: bool,
}

/// What turns the last residual stream into scores of the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// Whether its weight is the embedding's.
    pub tied: bool,
    /// What scores are divided by.
    pub divisor: Option<f64>,
    /// Bound of soft-capped scores.
    pub cap: Option<f64>,
}

impl Config {
    /// What Llama's keys say: the start of most families.
    ///
    /// # Errors
    /// A key that is missing or has a value that no model has.
    pub fn llama(file: &ConfigFile) -> Result<Self, ModelError> {
        Self::llama_turned(file, Source::LLAMA)
    }

    /// The same with rotary positions from elsewhere.
    ///
    /// # Errors
    /// As [`Self::llama`].
    pub fn llama_turned(file: &ConfigFile, source: Source) -> Result<Self, ModelError> {
        let (d_model, n_layers) = (file.size("hidden_size")?, file.size("num_hidden_layers")?);
        let heads = heads(file, d_model)?;
        let positions = file.size("max_position_embeddings")?;
        let rope = RopeConfig::read(file, source, (heads.d, positions))?;
        let layer = Layer { sees: Sees::PAST, rope: Some(0), experts: false, unnormed: false };
        Ok(Self {
            names: LLAMA,
            d_model,
            vocab_size: file.size("vocab_size")?,
            context: rope.reach(positions),
            embed: Embed::default(),
            norm: NormConfig { kind: NormKind::Rms, eps: file.positive_or("rms_norm_eps", 1e-6)? },
            attention: AttentionConfig {
                heads,
                scale: (heads.d as f64).sqrt().recip(),
                cap: None,
                norm: None,
                clip: None,
                bias: Biases::all(file.flag_or("attention_bias", false)?),
            },
            mlp: MlpConfig {
                width: file.size("intermediate_size")?,
                act: file.activation("hidden_act", "silu")?,
                bias: file.flag_or("mlp_bias", false)?,
                experts: None,
            },
            residual: Residual { parallel: false, scale: None },
            layers: vec![layer; n_layers],
            ropes: vec![rope],
            head: Some(Head {
                tied: file.flag_or("tie_word_embeddings", false)?,
                divisor: None,
                cap: None,
            }),
        })
    }

    /// Lets the layers that `slides` marks see a window of `sliding_window` tokens, themselves
    /// included.
    ///
    /// # Errors
    /// A window that is no size.
    pub fn windows(&mut self, file: &ConfigFile, slides: &[bool]) -> Result<(), ModelError> {
        if slides.contains(&true) {
            let sees = Sees::window(file.size("sliding_window")?);
            let layers = self.layers.iter_mut().zip(slides).filter(|(_, slides)| **slides);
            layers.for_each(|(layer, _)| layer.sees = sees);
        }
        Ok(())
    }

    /// Lets all layers see a window, if `sliding_window` gives one.
    ///
    /// # Errors
    /// A window that is no size.
    pub fn window(&mut self, file: &ConfigFile) -> Result<(), ModelError> {
        let slides = file.get("sliding_window").is_some();
        self.windows(file, &vec![slides; self.layers.len()])
    }

    /// Leaves queries and keys unturned.
    pub fn still(&mut self) {
        self.ropes.clear();
        self.layers.iter_mut().for_each(|layer| layer.rope = None);
    }

    /// Puts experts into the layers that `sparse` names.
    ///
    /// # Errors
    /// More experts for a token than there are.
    pub fn experts(
        &mut self,
        file: &ConfigFile,
        experts: Experts,
        sparse: impl Fn(usize) -> bool,
    ) -> Result<(), ModelError> {
        if experts.chosen > experts.count {
            let expected = format!("at most {} experts", experts.count);
            return Err(file.unsupported("num_experts_per_tok", experts.chosen, &expected));
        }
        self.mlp.experts = Some(experts);
        let layers = self.layers.iter_mut().enumerate();
        layers.for_each(|(i, layer)| layer.experts = sparse(i));
        Ok(())
    }

    /// Ties the head to the embedding, unless the key says otherwise.
    ///
    /// # Errors
    /// A value that is neither true nor false.
    pub fn tied_unless_told(&mut self, file: &ConfigFile) -> Result<(), ModelError> {
        let tied = file.flag_or("tie_word_embeddings", true)?;
        self.head.iter_mut().for_each(|head| head.tied = tied);
        Ok(())
    }

    /// Whether the feed-forward block has a gate.
    pub fn gated(&self) -> bool {
        !matches!(self.names.mlp.inner, Inner::Plain(_))
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        let (d, vocab) = (self.d_model as u64, self.vocab_size as u64);
        let norm = self.norm.parameters(self.d_model);
        let tables = vocab * d
            + if self.names.positions.is_some() { self.context as u64 * d } else { 0 }
            + if self.names.embed_norm.is_some() { norm } else { 0 };
        let head = if self.head.is_some_and(|head| !head.tied) { vocab * d } else { 0 };
        let layers: u64 = self.layers.iter().map(|layer| self.layer_parameters(layer)).sum();
        tables + layers + norm + head
    }

    fn layer_parameters(&self, layer: &Layer) -> u64 {
        let (d, Heads { heads, kv_heads, d: width }) = (self.d_model, self.attention.heads);
        let (q, kv) = (heads * width, kv_heads * width);
        let AttentionConfig { bias, norm, .. } = self.attention;
        let biases = if bias.qkv { q + 2 * kv } else { 0 } + if bias.o { d } else { 0 };
        let qk = match norm {
            Some(QkNorm::Head) => 2 * width,
            Some(QkNorm::Projection) => q + kv,
            None => 0,
        };
        let names = (self.names.attn, self.names.mlp);
        let norms = [names.0.before, names.0.after, names.1.before, names.1.after];
        let norms = norms.iter().flatten().count() - usize::from(layer.unnormed);
        let attention = 2 * d * (q + kv) + biases + qk;
        (attention + self.feed_forward(layer, false)) as u64
            + norms as u64 * self.norm.parameters(d)
    }

    /// Weights of a layer's feed-forward block, or those of them that one token meets.
    fn feed_forward(&self, layer: &Layer, met: bool) -> usize {
        let (d, MlpConfig { width, bias, experts, .. }) = (self.d_model, self.mlp);
        let inner = if self.gated() { 2 } else { 1 };
        match experts.filter(|_| layer.experts) {
            Some(e) => {
                let experts = if met { e.chosen } else { e.count };
                let shared = e.shared.map_or(0, |width| 3 * d * width + d);
                d * e.count + experts * 3 * d * e.width + shared
            }
            None => (inner + 1) * d * width + if bias { inner * width + d } else { 0 },
        }
    }

    /// Multiplications by weights that a layer costs each token.
    pub fn products(&self, layer: &Layer) -> f64 {
        let Heads { heads, kv_heads, d } = self.attention.heads;
        let attention = 2 * self.d_model * (heads + kv_heads) * d;
        (attention + self.feed_forward(layer, true)) as f64
    }
}

/// The heads, checked.
fn heads(file: &ConfigFile, d_model: usize) -> Result<Heads, ModelError> {
    let heads = file.size("num_attention_heads")?;
    let kv_heads = file.maybe_size("num_key_value_heads")?.unwrap_or(heads);
    file.divides("num_key_value_heads", kv_heads, ("num_attention_heads", heads))?;
    let own = file.maybe_size("head_dim")?;
    if own.is_none() {
        file.divides("num_attention_heads", heads, ("hidden_size", d_model))?;
    }
    let d = own.unwrap_or(d_model / heads);
    if !d.is_multiple_of(2) {
        return Err(file.unsupported("head_dim", d, "an even number"));
    }
    Ok(Heads { heads, kv_heads, d })
}
