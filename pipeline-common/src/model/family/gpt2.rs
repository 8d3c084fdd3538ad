//! GPT-2: learned positions, layer norms with biases, weights stored [in, out].

use serde_json::json;

use super::{
    super::{
        ModelError,
        block::norm::{NormConfig, NormKind},
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{AttnNames, Biases, Inner, LLAMA, MlpNames, Names, Qkv},
        },
    },
    Description,
};

const NAMES: Names = Names {
    base: "transformer",
    embed: "wte",
    positions: Some("wpe"),
    embedded: Some("drop"),
    layers: "h",
    attn: AttnNames {
        before: Some("ln_1"),
        module: "attn",
        qkv: Qkv::Joined("c_attn"),
        o: "c_proj",
        after: None,
    },
    mlp: MlpNames {
        before: Some("ln_2"),
        module: "mlp",
        inner: Inner::Plain("c_fc"),
        act: "act",
        down: "c_proj",
        after: None,
    },
    norm: "ln_f",
    transposed: true,
    ..LLAMA
};

/// GPT-2's settings, which have names of their own.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let d_model = file.size("n_embd")?;
    let inner = file.maybe_size("n_inner")?.unwrap_or(4 * d_model);
    let renamed = file.or(json!({
        "hidden_size": d_model, "intermediate_size": inner,
        "num_hidden_layers": file.size("n_layer")?, "num_attention_heads": file.size("n_head")?,
        "max_position_embeddings": file.size("n_positions")?,
    }));
    let mut config = Config::llama(&renamed)?;
    config.names = NAMES;
    config.norm = NormConfig {
        kind: NormKind::Layer { bias: true },
        eps: file.positive_or("layer_norm_epsilon", 1e-5)?,
    };
    config.attention.bias = Biases::all(true);
    if !file.flag_or("scale_attn_weights", true)? {
        config.attention.scale = 1.0;
    }
    config.mlp.act = file.activation("activation_function", "gelu_new")?;
    config.mlp.bias = true;
    config.still();
    config.tied_unless_told(file)?;
    Ok(config.into())
}
