//! Gemma 1 (arXiv:2403.08295): Llama with a scaled embedding, weights of norms stored from one, and
//! GELU.

use super::{
    super::{
        ModelError,
        block::norm::NormKind,
        config_file::ConfigFile,
        transformer::{Config, config::Embed},
    },
    Description,
};
use crate::kernels::activation::Activation;

/// Gemma's own changes to Llama; the first checkpoints say `gelu` and mean its approximation.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = base(file)?;
    let key =
        if file.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    config.mlp.act = match file.activation(key, "gelu_pytorch_tanh")? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    Ok(config.into())
}

/// What all Gemmas share.
pub fn base(file: &ConfigFile) -> Result<Config, ModelError> {
    let mut config = Config::llama(file)?;
    config.norm.kind = NormKind::RmsFromOne;
    config.embed = Embed { scale: Some((config.d_model as f64).sqrt()), after: None };
    config.tied_unless_told(file)?;
    Ok(config)
}
