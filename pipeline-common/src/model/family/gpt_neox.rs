//! GPT-NeoX and Pythia (arXiv:2204.06745): both halves of a block side by side, a part of each head
//! turns, queries, keys and values joined head by head.

use super::{
    super::{
        ModelError,
        block::{
            norm::{NormConfig, NormKind},
            rope::Source,
        },
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, Biases, Inner, LLAMA, MlpNames, Names, Qkv},
        },
    },
    Description,
};

const NAMES: Names = Names {
    base: "gpt_neox",
    embed: "embed_in",
    attn: AttnNames {
        module: "attention",
        qkv: Qkv::ByHead("query_key_value"),
        o: "dense",
        ..LLAMA.attn
    },
    mlp: MlpNames {
        inner: Inner::Plain("dense_h_to_4h"),
        act: "act",
        down: "dense_4h_to_h",
        ..LLAMA.mlp
    },
    norm: "final_layer_norm",
    head: "embed_out",
    ..LLAMA
};

const ROPE: Source = Source {
    theta: ("rotary_emb_base", 10_000.0),
    partial: Some(("rotary_pct", 0.25)),
    ..Source::LLAMA
};

/// GPT-NeoX's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama_turned(file, ROPE)?;
    config.names = NAMES;
    config.norm = NormConfig {
        kind: NormKind::Layer { bias: true },
        eps: file.positive_or("layer_norm_eps", 1e-5)?,
    };
    config.attention.bias = Biases::all(file.flag_or("attention_bias", true)?);
    config.mlp.act = file.activation("hidden_act", "gelu")?;
    config.mlp.bias = true;
    config.residual.parallel = file.flag_or("use_parallel_residual", true)?;
    Ok(config.into())
}
