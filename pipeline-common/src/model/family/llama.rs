//! Llama 1, 2 and 3.x, and whatever is published as `llama`: Bielik, SmolLM, TinyLlama, Yi.

use super::{
    super::{ModelError, config_file::ConfigFile, transformer::Config},
    Description,
};

/// Norm before each half of a block, rotary positions, grouped queries, a gated feed-forward block.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    Ok(Config::llama(file)?.into())
}
