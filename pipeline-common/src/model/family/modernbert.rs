//! ModernBERT (arXiv:2412.13663): an encoder with rotary positions and norms before each half, two
//! thirds of whose layers see a window to both sides.

use super::{
    super::{
        ModelError,
        block::{
            norm::{NormConfig, NormKind},
            rope::{RopeConfig, Source},
        },
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, Inner, LLAMA, MlpNames, Names, Qkv},
        },
    },
    Description,
};
use crate::kernels::attention::Sees;

const NAMES: Names = Names {
    embed: "embeddings.tok_embeddings",
    embed_norm: Some("embeddings.norm"),
    embedded: Some("embeddings"),
    attn: AttnNames {
        before: Some("attn_norm"),
        module: "attn",
        qkv: Qkv::Joined("Wqkv"),
        o: "Wo",
        after: None,
    },
    mlp: MlpNames {
        before: Some("mlp_norm"),
        module: "mlp",
        inner: Inner::Joined("Wi"),
        act: "act",
        down: "Wo",
        after: None,
    },
    norm: "final_norm",
    ..LLAMA
};

/// Rotary positions of layers that see everything.
const GLOBAL: Source = Source {
    layers: Some("full_attention"),
    theta: ("global_rope_theta", 160_000.0),
    scaled: true,
    partial: None,
};
/// Rotary positions of layers with a window.
const LOCAL: Source =
    Source { layers: Some("sliding_attention"), theta: ("local_rope_theta", 10_000.0), ..GLOBAL };

/// ModernBERT's settings. The embedding's norm stands for that of the first block.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama_turned(file, GLOBAL)?;
    config.names = NAMES;
    config.norm = NormConfig {
        kind: NormKind::Layer { bias: file.flag_or("norm_bias", false)? },
        eps: file.positive_or("norm_eps", 1e-5)?,
    };
    config.mlp.act = file.activation("hidden_activation", "gelu")?;
    config.head = None;
    let local = RopeConfig::read(file, LOCAL, (config.attention.heads.d, config.context))?;
    config.ropes.push(local);
    let half = file.maybe_size("local_attention")?.unwrap_or(128) / 2;
    let every = file.maybe_size("global_attn_every_n_layers")?.unwrap_or(3);
    let slides = file.sliding_layers(config.layers.len(), |i| !i.is_multiple_of(every))?;
    for (layer, slides) in config.layers.iter_mut().zip(slides) {
        layer.sees = if slides { Sees { back: half, ahead: half } } else { Sees::ALL };
        layer.rope = Some(usize::from(slides));
    }
    config.layers.iter_mut().take(1).for_each(|first| first.unnormed = true);
    Ok(config.into())
}
