//! Gemma 3 (arXiv:2503.19786): Gemma 2 with norms of queries and keys instead of caps, and five layers
//! with a window, rotary positions of their own, for each without.

use serde_json::json;

use super::{
    super::{
        ModelError,
        block::{
            attention::QkNorm,
            rope::{RopeConfig, Source},
        },
        config_file::ConfigFile,
        transformer::Config,
    },
    Description, gemma2,
};

/// Rotary positions of layers without a window.
const GLOBAL: Source = Source {
    layers: Some("full_attention"),
    theta: ("rope_theta", 1e6),
    scaled: true,
    partial: None,
};
/// Rotary positions of layers with one.
const LOCAL: Source = Source {
    layers: Some("sliding_attention"),
    theta: ("rope_local_base_freq", 1e4),
    scaled: false,
    partial: None,
};

/// The text model by itself.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    Ok(text(file)?.into())
}

/// The text model below images, whose `text_config` leaves out what is as in the smallest.
pub fn describe_multimodal(file: &ConfigFile) -> Result<Description, ModelError> {
    let inner = file.section("text_config").or(json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131_072, "sliding_window": 4096,
    }));
    let mut config = text(&inner)?;
    inner.refuse_unread()?;
    config.names.base = "model.language_model";
    Ok(config.into())
}

fn text(file: &ConfigFile) -> Result<Config, ModelError> {
    let mut config = gemma2::base(file, (None, None))?;
    config.attention.norm = Some(QkNorm::Head);
    let size = (config.attention.heads.d, file.size("max_position_embeddings")?);
    let rope = |source| RopeConfig::read(file, source, size);
    config.ropes = vec![rope(GLOBAL)?, rope(LOCAL)?];
    // The scaling is what made the context as long as it is said to be.
    config.context = size.1;
    let pattern = file.maybe_size("sliding_window_pattern")?.unwrap_or(6);
    let slides = file.sliding_layers(config.layers.len(), |i| !(i + 1).is_multiple_of(pattern))?;
    config.windows(file, &slides)?;
    for (layer, slides) in config.layers.iter_mut().zip(slides) {
        layer.rope = Some(usize::from(slides));
    }
    Ok(config)
}
