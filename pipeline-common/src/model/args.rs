//! Which hooks to read, as the user names them.

use clap::Args;

use super::{Hook, ModelError, ModelInfo, Point};
use crate::stage::config::List;

/// Options that choose hooks.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Hooks")]
pub struct HookArgs {
    /// Layer to read, from 0; if it is not given and the model is shallower, the middle layer
    #[arg(long, env, value_name = "N", default_value_t = 16)]
    pub layer_num: usize,
    /// Layers to read, separated by commas or blanks; wins over LAYER_NUM
    #[arg(long, env, value_name = "N,..")]
    pub layers: Vec<List<usize>>,
    /// Hooks to read, separated by commas or blanks: resid_pre, resid_mid, resid_post, attn_out, mlp_out,
    /// mlp_in or mlp_act for each layer, or full names that carry their own layer
    /// [default: resid_mid; resid_post for encoders]
    #[arg(long, env, value_name = "NAME,..")]
    pub hook: Vec<List<String>>,
}

impl HookArgs {
    /// The hooks, without repetitions, in the order of computation.
    ///
    /// `layer_given` says whether `LAYER_NUM` was set by the user. Its default may lie beyond a
    /// small model, which is then read at its middle layer.
    ///
    /// # Errors
    /// [`ModelError::UnknownHook`] and [`ModelError::NoSuchLayer`], both with what exists.
    pub fn resolve(&self, info: &ModelInfo, layer_given: bool) -> Result<Vec<Hook>, ModelError> {
        let layers = self.chosen_layers(info, layer_given);
        let mut names: Vec<&str> =
            self.hook.iter().flat_map(|l| &l.0).map(String::as_str).collect();
        if names.is_empty() {
            names.push(default_hook(info));
        }
        let mut hooks = Vec::new();
        for name in names {
            if Point::ALIASES.iter().any(|(alias, _)| *alias == name) {
                for layer in &layers {
                    hooks.push(Hook::alias(name, *layer, info)?);
                }
            } else {
                hooks.push(Hook::parse(name, info)?);
            }
        }
        let order = Hook::all(info);
        let place = |hook: &Hook| order.iter().position(|h| h == hook);
        hooks.sort_by_key(place);
        hooks.dedup();
        Ok(hooks)
    }

    fn chosen_layers(&self, info: &ModelInfo, layer_given: bool) -> Vec<usize> {
        if !self.layers.is_empty() {
            return self.layers.iter().flat_map(|list| list.0.clone()).collect();
        }
        if layer_given || self.layer_num < info.n_layers {
            return vec![self.layer_num];
        }
        let middle = info.middle_layer();
        tracing::info!(
            "LAYER_NUM is not set and {} has {} layers: reading the middle one, {middle}",
            info.architecture,
            info.n_layers
        );
        vec![middle]
    }
}

/// The alias that is read if none is named: the residual stream.
///
/// An encoder's `resid_mid` is a sum that nothing but a norm reads, hence its block output.
fn default_hook(info: &ModelInfo) -> &'static str {
    if info.site(Point::ResidSum).is_some() { "resid_post" } else { "resid_mid" }
}

#[cfg(test)]
mod tests {
    use super::{super::info::testing::tiny, *};
    use crate::stage::Classify;

    fn args(layers: &[usize], hooks: &[&str]) -> HookArgs {
        let layers = layers.iter().map(|n| List(vec![*n])).collect();
        let hook = hooks.iter().map(|h| List(vec![(*h).to_owned()])).collect();
        HookArgs { layer_num: 16, layers, hook }
    }

    fn at(layer: usize, point: Point) -> Hook {
        Hook { layer: Some(layer), point }
    }

    #[test]
    fn the_default_layer_gives_way_and_a_given_one_does_not() {
        let info = tiny("llama", "LlamaForCausalLM");
        assert_eq!(args(&[], &[]).resolve(&info, false).unwrap(), [at(1, Point::ResidMid)]);
        let error = args(&[], &[]).resolve(&info, true).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(args(&[1, 3], &[]).resolve(&info, false).is_err());
    }

    #[test]
    fn aliases_apply_to_every_layer_and_full_names_carry_theirs() {
        let info = tiny("llama", "LlamaForCausalLM");
        let given = args(&[2, 0], &["mlp_out", "blocks.1.hook_resid_pre", "resid_mid", "mlp_out"]);
        let expected = [
            at(0, Point::ResidMid),
            at(0, Point::MlpOut),
            at(1, Point::ResidPre),
            at(2, Point::ResidMid),
            at(2, Point::MlpOut),
        ];
        assert_eq!(given.resolve(&info, false).unwrap(), expected);
    }

    #[test]
    fn encoders_are_read_where_a_block_ends() {
        let info = tiny("bert", "BertModel");
        assert_eq!(args(&[], &[]).resolve(&info, false).unwrap(), [at(1, Point::ResidPost)]);
    }
}
