//! StarCoder2 (arXiv:2402.19173): layer norms, biases, a feed-forward block without a gate, a window.

use super::{
    super::{
        ModelError,
        block::norm::{NormConfig, NormKind},
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{Biases, Inner, LLAMA, MlpNames, Names},
        },
    },
    Description,
};

const NAMES: Names = Names {
    mlp: MlpNames { inner: Inner::Plain("c_fc"), act: "act", down: "c_proj", ..LLAMA.mlp },
    ..LLAMA
};

/// StarCoder2's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.names = NAMES;
    config.norm = NormConfig {
        kind: NormKind::Layer { bias: true },
        eps: file.positive_or("norm_epsilon", 1e-5)?,
    };
    let bias = file.flag_or("use_bias", true)?;
    config.attention.bias = Biases::all(bias);
    config.mlp.bias = bias;
    config.mlp.act = file.activation("hidden_act", "gelu_pytorch_tanh")?;
    config.window(file)?;
    config.tied_unless_told(file)?;
    Ok(config.into())
}
