//! Phi-3 and Phi-3.5 (arXiv:2404.14219): Llama with joined projections and long rotary positions.

use super::{
    super::{
        ModelError,
        block::rope::Source,
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, Inner, LLAMA, MlpNames, Names, Qkv},
        },
    },
    Description,
};

const NAMES: Names = Names {
    attn: AttnNames { qkv: Qkv::Joined("qkv_proj"), ..LLAMA.attn },
    mlp: MlpNames { inner: Inner::Joined("gate_up_proj"), act: "activation_fn", ..LLAMA.mlp },
    ..LLAMA
};

/// Phi-4-mini, which is published as `phi3`, turns a part of each head.
const ROPE: Source = Source { partial: Some(("partial_rotary_factor", 1.0)), ..Source::LLAMA };

/// Phi-3's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama_turned(file, ROPE)?;
    config.names = NAMES;
    config.window(file)?;
    Ok(config.into())
}
