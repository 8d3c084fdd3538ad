//! Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama with biases on queries, keys and values.

use super::{
    super::{
        ModelError,
        config_file::ConfigFile,
        transformer::{Config, config::Biases},
    },
    Description,
};

/// Llama with biases, and windows in the upper layers where they are switched on.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.attention.bias = Biases { qkv: true, o: false };
    windows(&mut config, file)?;
    Ok(config.into())
}

/// Qwen's windows: from layer `max_window_layers` on, if `use_sliding_window`.
pub fn windows(config: &mut Config, file: &ConfigFile) -> Result<(), ModelError> {
    let on = file.flag_or("use_sliding_window", false)? && file.get("sliding_window").is_some();
    let first = file.number_or("max_window_layers", 28.0)?;
    let slides = file.sliding_layers(config.layers.len(), |layer| on && layer as f64 >= first)?;
    file.get("sliding_window");
    config.windows(file, &slides)
}
