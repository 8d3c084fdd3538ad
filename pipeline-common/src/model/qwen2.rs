//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

use serde_json::Value;

use super::{
    ModelError,
    config_file::ConfigFile,
    decoder::{Biases, DecoderConfig, DecoderJson},
};

/// Qwen2's settings. A sliding window is accepted only where it is switched off.
pub(super) fn config(json: DecoderJson, file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    if file.get("use_sliding_window") == Some(&Value::Bool(true)) {
        file.refuse_unless("sliding_window", &[])?;
    }
    for kind in file.get("layer_types").and_then(Value::as_array).into_iter().flatten() {
        if kind != "full_attention" {
            return Err(file.unsupported("layer_types", kind, "full_attention"));
        }
    }
    json.checked(Biases { qkv: true, o: false, mlp: false }, file)
}
