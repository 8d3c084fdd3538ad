//! OLMo 2 (arXiv:2501.00656): norms after each half of a block instead of before, and of all queries
//! and all keys.

use super::{
    super::{
        ModelError,
        block::attention::QkNorm,
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, LLAMA, MlpNames, Names},
        },
    },
    Description,
};

const NAMES: Names = Names {
    attn: AttnNames { before: None, after: Some("post_attention_layernorm"), ..LLAMA.attn },
    mlp: MlpNames { before: None, after: Some("post_feedforward_layernorm"), ..LLAMA.mlp },
    ..LLAMA
};

/// OLMo 2's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.names = NAMES;
    config.norm.eps = file.positive_or("rms_norm_eps", 1e-5)?;
    config.attention.norm = Some(QkNorm::Projection);
    Ok(config.into())
}
