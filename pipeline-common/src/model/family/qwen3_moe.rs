//! Qwen3-MoE (arXiv:2505.09388): Qwen3 with many small feed-forward blocks.

use super::{
    super::{ModelError, block::attention::QkNorm, config_file::ConfigFile, transformer::Config},
    Description, qwen2_moe,
};

/// Qwen3-MoE's settings; where windows are switched on, all layers have one.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.attention.norm = Some(QkNorm::Head);
    let on = file.flag_or("use_sliding_window", false)? && file.get("sliding_window").is_some();
    file.get("sliding_window");
    config.windows(file, &vec![on; config.layers.len()])?;
    qwen2_moe::experts(&mut config, file, None)?;
    Ok(config.into())
}
