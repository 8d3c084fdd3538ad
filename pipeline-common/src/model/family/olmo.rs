//! OLMo 1 (arXiv:2402.00838): Llama with layer norms that have no weights, and bounded projections.

use super::{
    super::{
        ModelError,
        block::norm::{NormConfig, NormKind},
        config_file::ConfigFile,
        transformer::Config,
    },
    Description,
};

/// OLMo's settings; its norms' eps is no setting.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.norm = NormConfig { kind: NormKind::LayerPlain, eps: 1e-5 };
    config.attention.clip =
        file.get("clip_qkv").map(|_| file.positive_or("clip_qkv", 1.0)).transpose()?;
    Ok(config.into())
}
