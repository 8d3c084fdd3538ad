//! Gemma 2 (arXiv:2408.00118): norms before and after each half of a block, soft-capped scores, every
//! other layer with a window.

use super::{
    super::{
        ModelError,
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, LLAMA, MlpNames, Names},
        },
    },
    Description, gemma,
};

/// A norm on each side of each half.
const NAMES: Names = Names {
    attn: AttnNames { after: Some("post_attention_layernorm"), ..LLAMA.attn },
    mlp: MlpNames {
        before: Some("pre_feedforward_layernorm"),
        after: Some("post_feedforward_layernorm"),
        ..LLAMA.mlp
    },
    ..LLAMA
};

/// Gemma 2's settings; even layers have the window.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = base(file, (Some(50.0), Some(30.0)))?;
    let slides = file.sliding_layers(config.layers.len(), |layer| layer % 2 == 0)?;
    config.windows(file, &slides)?;
    Ok(config.into())
}

/// What Gemma 2 and 3 share, with the caps of scores of keys and of tokens that hold if none are given.
pub fn base(
    file: &ConfigFile,
    (cap, head_cap): (Option<f64>, Option<f64>),
) -> Result<Config, ModelError> {
    let bound = |key: &str, default| match file.has(key) {
        true => file.get(key).map(|_| file.positive_or(key, 1.0)).transpose(),
        false => Ok(default),
    };
    let mut config = gemma::base(file)?;
    config.names = NAMES;
    config.mlp.act = file.activation("hidden_activation", "gelu_pytorch_tanh")?;
    config.attention.scale = file.positive_or("query_pre_attn_scalar", 256.0)?.sqrt().recip();
    config.attention.cap = bound("attn_logit_softcapping", cap)?;
    let head_cap = bound("final_logit_softcapping", head_cap)?;
    config.head.iter_mut().for_each(|head| head.cap = head_cap);
    Ok(config)
}
