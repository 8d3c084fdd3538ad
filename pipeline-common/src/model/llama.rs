//! Llama 1, 2 and 3.x, and whatever is published as `llama`: Bielik, SmolLM, TinyLlama.

use super::{
    ModelError,
    config_file::ConfigFile,
    decoder::{Biases, DecoderConfig, DecoderJson},
};

/// Llama's settings: biases on request, attention over the whole sentence.
pub(super) fn config(json: DecoderJson, file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    file.refuse_unless("sliding_window", &[])?;
    let attention = json.attention_bias.unwrap_or(false);
    let biases = Biases { qkv: attention, o: attention, mlp: json.mlp_bias.unwrap_or(false) };
    json.checked(biases, file)
}
