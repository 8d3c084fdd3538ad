//! Mistral (arXiv:2310.06825): Llama whose tokens see a window.

use super::{
    super::{ModelError, config_file::ConfigFile, transformer::Config},
    Description,
};

/// Llama with `sliding_window` in every layer, unless it is null.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.window(file)?;
    Ok(config.into())
}
