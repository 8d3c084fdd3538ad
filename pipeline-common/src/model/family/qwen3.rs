//! Qwen3 (arXiv:2505.09388): Llama with a norm over each head's query and key.

use super::{
    super::{ModelError, block::attention::QkNorm, config_file::ConfigFile, transformer::Config},
    Description, qwen2,
};

/// Llama with norms of queries and keys, and Qwen's windows.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.attention.norm = Some(QkNorm::Head);
    qwen2::windows(&mut config, file)?;
    Ok(config.into())
}
