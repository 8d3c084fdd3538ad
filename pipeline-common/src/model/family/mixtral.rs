//! Mixtral (arXiv:2401.04088): Mistral whose tokens run through a few of many feed-forward blocks.

use super::{
    super::{
        ModelError,
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{ExpertNames, Experts},
        },
    },
    Description,
};

/// Mixtral's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.window(file)?;
    let experts = Experts {
        count: file.size("num_local_experts")?,
        chosen: file.size("num_experts_per_tok")?,
        width: config.mlp.width,
        normalised: true,
        shared: None,
        names: ExpertNames { module: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
    };
    config.experts(file, experts, |_| true)?;
    Ok(config.into())
}
