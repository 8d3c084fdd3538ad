//! Granite 3: Llama with a factor on the embedding, the scores of keys, what blocks add, and the scores
//! of tokens.

use super::{
    super::{
        ModelError,
        config_file::ConfigFile,
        transformer::{Config, config::Embed},
    },
    Description,
};

/// Granite's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.embed = Embed { scale: None, after: file.maybe_number("embedding_multiplier")? };
    config.attention.scale = file.positive_or("attention_multiplier", 1.0)?;
    config.residual.scale = file.maybe_number("residual_multiplier")?;
    let divisor = file.positive_or("logits_scaling", 1.0)?;
    config.head.iter_mut().for_each(|head| head.divisor = Some(divisor));
    Ok(config.into())
}
