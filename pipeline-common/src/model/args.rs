//! Which hooks to read, as the user names them.

use std::str::FromStr;

use clap::Args;
use glob::Pattern;

use super::{Hook, ModelError, ModelInfo, Point};
use crate::stage::config::List;

/// Names that an error lists where a pattern matches none.
const NEAR: usize = 5;

/// Options that choose hooks.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Hooks")]
pub struct HookArgs {
    /// Layer to read, from 0; if it is not given and the model is shallower, the middle layer
    #[arg(long, env, value_name = "N", default_value_t = 16)]
    pub layer_num: usize,
    /// Layers to read, separated by commas or blanks: numbers, ranges 0-11 and 0-11:3 (every third),
    /// or all; wins over LAYER_NUM
    #[arg(long, env, value_name = "N,..")]
    pub layers: Vec<List<Layers>>,
    /// Hooks to read, separated by commas or blanks: resid_pre, resid_mid, resid_post, attn_out, mlp_out,
    /// mlp_in, mlp_act or z for each layer, full names that carry their own layer (or need none:
    /// embed, final_norm, logits), or patterns with * ? [..], within LAYERS where it is set
    /// [default: resid_mid; resid_post where that is no residual stream: BERT's kind, GPT-NeoX]
    #[arg(long, env, value_name = "NAME,..")]
    pub hook: Vec<List<String>>,
}

/// One item of LAYERS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    All,
    /// From the first to the last, both included, with a step.
    Range(usize, usize, usize),
}

impl Layers {
    fn of(self, n_layers: usize) -> impl Iterator<Item = usize> {
        let (first, last, step) = match self {
            Self::All => (0, n_layers - 1, 1),
            Self::Range(first, last, step) => (first, last, step),
        };
        (first..=last).step_by(step)
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = |part: &str| part.parse::<usize>().map_err(|e| e.to_string());
        let (range, step) = text.split_once(':').map_or((text, Ok(1)), |(r, s)| (r, number(s)));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step) = (number(first)?, number(last)?, step?);
        if first > last || step == 0 || last > u16::MAX.into() {
            return Err("expected a number, `all`, or a range such as 0-11 or 0-11:3".to_owned());
        }
        Ok(Self::Range(first, last, step))
    }
}

impl HookArgs {
    /// The hooks, without repetitions, in the order of computation.
    ///
    /// `layer_given` says whether `LAYER_NUM` was set by the user. Its default may lie beyond a
    /// small model, which is then read at its middle layer.
    ///
    /// # Errors
    /// [`ModelError::UnknownHook`], [`ModelError::NoMatch`] and [`ModelError::NoSuchLayer`], all
    /// with what exists.
    pub fn resolve(&self, info: &ModelInfo, layer_given: bool) -> Result<Vec<Hook>, ModelError> {
        let layers = self.chosen_layers(info, layer_given);
        let mut names: Vec<&str> =
            self.hook.iter().flat_map(|l| &l.0).map(String::as_str).collect();
        if names.is_empty() {
            names.push(default_hook(info));
        }
        let mut hooks = Vec::new();
        for name in names {
            if name.contains(['*', '?', '[']) {
                hooks.extend(self.matching(name, &layers, info)?);
            } else if Point::ALIASES.iter().any(|(alias, _)| *alias == name) {
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

    /// The hooks that have a name of the pattern: aliases in the chosen layers, the other names in
    /// LAYERS, or anywhere if that is not set.
    fn matching(
        &self,
        pattern: &str,
        layers: &[usize],
        info: &ModelInfo,
    ) -> Result<Vec<Hook>, ModelError> {
        if let Some(&layer) = layers.iter().find(|l| **l >= info.n_layers) {
            return Err(Hook::alias(default_hook(info), layer, info)
                .err()
                .unwrap_or_else(|| no_match(pattern, info)));
        }
        let Ok(glob) = Pattern::new(pattern) else { return Err(no_match(pattern, info)) };
        let chosen = |h: &Hook| h.layer.is_some_and(|l| layers.contains(&l));
        let alias = |h: &Hook| chosen(h) && h.point.alias().is_some_and(|a| glob.matches(a));
        let named = |h: &Hook| {
            (self.layers.is_empty() || chosen(h)) && names(h, info).iter().any(|n| glob.matches(n))
        };
        let found: Vec<Hook> =
            Hook::all(info).into_iter().filter(|h| alias(h) || named(h)).collect();
        if found.is_empty() { Err(no_match(pattern, info)) } else { Ok(found) }
    }

    fn chosen_layers(&self, info: &ModelInfo, layer_given: bool) -> Vec<usize> {
        if !self.layers.is_empty() {
            return self
                .layers
                .iter()
                .flat_map(|list| &list.0)
                .flat_map(|l| l.of(info.n_layers))
                .collect();
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

fn names(hook: &Hook, info: &ModelInfo) -> [String; 3] {
    [hook.module_path(info), hook.transformer_lens(info), hook.signature(info)]
}

/// A pattern without a match, and the names most like it.
fn no_match(pattern: &str, info: &ModelInfo) -> ModelError {
    let plain = pattern.replace(['*', '?', '[', ']'], "");
    let mut near: Vec<String> = Hook::all(info).iter().flat_map(|h| names(h, info)).collect();
    near.extend(Point::ALIASES.iter().map(|(alias, _)| (*alias).to_owned()));
    near.sort_by_key(|name| std::cmp::Reverse((strsim::jaro_winkler(name, &plain) * 1e6) as u64));
    near.truncate(NEAR);
    let architecture = info.architecture.clone();
    ModelError::NoMatch { pattern: pattern.to_owned(), architecture, near: near.join(", ") }
}

/// The alias that is read if none is named: the residual stream.
///
/// An encoder's `resid_mid` is a sum that nothing but a norm reads, and a block whose halves work side
/// by side has none, hence the block's output.
fn default_hook(info: &ModelInfo) -> &'static str {
    let between = info.site(Point::ResidSum).is_none() && info.site(Point::ResidMid).is_some();
    if between { "resid_mid" } else { "resid_post" }
}

#[cfg(test)]
mod tests {
    use super::{super::info::testing::tiny, *};
    use crate::stage::Classify;

    fn args(layers: &[usize], hooks: &[&str]) -> HookArgs {
        let layers = layers.iter().map(|n| List(vec![Layers::Range(*n, *n, 1)])).collect();
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

    #[test]
    fn patterns_match_any_name_within_the_layers() {
        let info = tiny("llama", "LlamaForCausalLM");
        let resolve = |layers: &[usize], hook: &str| args(layers, &[hook]).resolve(&info, false);
        let everywhere: Vec<Hook> = (0..3).map(|l| at(l, Point::MlpOut)).collect();
        for pattern in ["blocks.*.hook_mlp_out", "model.layers.?.mlp", "*_layers_[0-2]_mlp"] {
            assert_eq!(resolve(&[], pattern).unwrap(), everywhere, "{pattern}");
            assert_eq!(resolve(&[1], pattern).unwrap(), [at(1, Point::MlpOut)], "{pattern}");
        }
        let streams = [Point::ResidPre, Point::ResidMid, Point::ResidPost];
        assert_eq!(resolve(&[2], "resid_*").unwrap(), streams.map(|p| at(2, p)));
        assert_eq!(resolve(&[], "*").unwrap(), Hook::all(&info));
        let error = resolve(&[], "blocks.*.hook_mlp_uot*").unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.hint().unwrap().contains("blocks.0.hook_mlp_out"), "{:?}", error.hint());
        assert!(resolve(&[3], "resid_*").is_err());
    }

    #[test]
    fn layers_are_numbers_ranges_or_all() {
        let info = tiny("llama", "LlamaForCausalLM");
        let layers = |text: &str| {
            let layers = vec![text.parse().unwrap()];
            HookArgs { layers, ..args(&[], &[]) }.chosen_layers(&info, false)
        };
        assert_eq!(layers("all"), [0, 1, 2]);
        assert_eq!(layers("0 2"), [0, 2]);
        assert_eq!(layers("1-2"), [1, 2]);
        assert_eq!(layers("0-11:3 1"), [0, 3, 6, 9, 1]);
        for bad in ["", "2-1", "0-4:0", "-1", "x", "1-", "0-99999999"] {
            assert!(bad.parse::<List<Layers>>().is_err(), "{bad}");
        }
    }
}
