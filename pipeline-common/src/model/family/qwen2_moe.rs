//! Qwen1.5-MoE and Qwen2-MoE: Qwen2 with many small feed-forward blocks and one that all tokens share.

use super::{
    super::{
        ModelError,
        config_file::ConfigFile,
        transformer::{
            Config,
            config::{Biases, ExpertNames, Experts},
        },
    },
    Description, qwen2,
};

/// Qwen2-MoE's settings.
pub fn describe(file: &ConfigFile) -> Result<Description, ModelError> {
    let mut config = Config::llama(file)?;
    config.attention.bias = Biases { qkv: file.flag_or("qkv_bias", true)?, o: false };
    qwen2::windows(&mut config, file)?;
    experts(&mut config, file, Some(file.size("shared_expert_intermediate_size")?))?;
    Ok(config.into())
}

/// Qwen's experts: in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name.
pub fn experts(
    config: &mut Config,
    file: &ConfigFile,
    shared: Option<usize>,
) -> Result<(), ModelError> {
    let experts = Experts {
        count: file.size("num_experts")?,
        chosen: file.size("num_experts_per_tok")?,
        width: file.size("moe_intermediate_size")?,
        normalised: file.flag_or("norm_topk_prob", false)?,
        shared,
        names: ExpertNames { module: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    };
    let step = file.maybe_size("decoder_sparse_step")?.unwrap_or(1);
    let plain = file.get("mlp_only_layers").and_then(|v| v.as_array());
    let named = |layer: usize| plain.is_some_and(|p| p.iter().any(|v| *v == layer));
    config.experts(file, experts, |i| !named(i) && (i + 1).is_multiple_of(step))
}
