//! Hook points, and the names under which people know them.
//!
//! Three schemes name the same tensor: the Hugging Face module path
//! (`model.layers.16.post_attention_layernorm` is the module's output, `...#in` its input), the
//! TransformerLens name (`blocks.16.ln2.hook_normalized`), and the signature
//! (`llamaforcausallm_model_layers_16_post_attention_layernorm`). Each family lists its hook points
//! once, as a table of [`Site`]s; everything here reads those tables.

use serde::Serialize;

use super::{
    ModelError, ModelInfo,
    site::{Point, Site, Width},
};

/// A named tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Hook {
    /// The layer, from 0; absent for points outside the blocks.
    pub layer: Option<usize>,
    /// The place in the layer.
    pub point: Point,
}

impl Hook {
    /// The hook that a module path, a TransformerLens name or a signature names, or `embed`,
    /// `final_norm` or `logits`.
    ///
    /// # Errors
    /// [`ModelError::UnknownHook`], listing the names that exist; [`ModelError::NoSuchLayer`].
    pub fn parse(name: &str, info: &ModelInfo) -> Result<Self, ModelError> {
        let bare = name.strip_prefix(info.prefix()).unwrap_or(name);
        let signature = name
            .strip_prefix(&info.architecture.to_lowercase())
            .and_then(|rest| rest.strip_prefix('_'));
        for site in info.sites() {
            let paths = std::iter::once(&site.path).chain(&site.also);
            let found = paths
                .flat_map(|path| {
                    let plain = fill_layer(path, name)
                        .or_else(|| path.strip_prefix('@').and_then(|path| fill_layer(path, bare)));
                    let flat = underscores(&path.replacen('@', info.prefix(), 1));
                    [plain, signature.and_then(|s| fill_layer(&flat, s))]
                })
                .chain([fill_layer(&site.lens, name)])
                .flatten()
                .next();
            if let Some(layer) = found {
                let last = site.per_layer().then(|| info.n_layers - 1);
                let layer = layer.or(last);
                return Self { layer, point: site.point }.checked(info);
            }
        }
        Err(unknown(name, info))
    }

    /// The hook that an alias such as `resid_mid` names in a layer.
    ///
    /// # Errors
    /// [`ModelError::UnknownHook`] if the family has no such point; [`ModelError::NoSuchLayer`].
    pub fn alias(name: &str, layer: usize, info: &ModelInfo) -> Result<Self, ModelError> {
        let point = Point::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, p)| *p);
        // Without a norm of its own the feed-forward block reads the residual stream itself.
        let point = match point {
            Some(Point::MlpIn) if info.site(Point::MlpIn).is_none() => Some(Point::ResidMid),
            point => point,
        };
        match point.filter(|point| info.site(*point).is_some()) {
            Some(point) => Self { layer: Some(layer), point }.checked(info),
            None => Err(unknown(name, info)),
        }
    }

    fn checked(self, info: &ModelInfo) -> Result<Self, ModelError> {
        match self.layer {
            Some(layer) if layer >= info.n_layers => Err(ModelError::NoSuchLayer {
                layer,
                n_layers: info.n_layers,
                architecture: info.architecture.clone(),
            }),
            _ => Ok(self),
        }
    }

    /// Every hook of a model, in the order of computation.
    pub fn all(info: &ModelInfo) -> Vec<Self> {
        let outside = |after: bool| {
            let one = |s: &Site| Self { layer: None, point: s.point };
            let sites = info.sites().iter();
            sites.filter(move |s| !s.per_layer() && (s.point > Point::ResidPost) == after).map(one)
        };
        let layers = (0..info.n_layers).flat_map(|layer| {
            let sites = info.sites().iter().filter(|s| s.per_layer());
            sites.map(move |s| Self { layer: Some(layer), point: s.point })
        });
        outside(false).chain(layers).chain(outside(true)).collect()
    }

    /// Blocks that must run before the hook's tensor exists.
    pub fn blocks(&self, info: &ModelInfo) -> usize {
        match (self.layer, self.point) {
            (Some(layer), Point::ResidPre) => layer,
            (Some(layer), _) => layer + 1,
            (None, point) if point < Point::ResidPre => 0,
            (None, _) => info.n_layers,
        }
    }

    /// The Hugging Face module path, with `#in` for a module's input.
    pub fn module_path(&self, info: &ModelInfo) -> String {
        self.fill(info, |site| &site.path).replacen('@', info.prefix(), 1)
    }

    /// The TransformerLens name. Where TransformerLens has no hook, the name follows its pattern.
    pub fn transformer_lens(&self, info: &ModelInfo) -> String {
        self.fill(info, |site| &site.lens)
    }

    /// The lower-case architecture and the module path, joined by underscores.
    pub fn signature(&self, info: &ModelInfo) -> String {
        let path = underscores(&self.module_path(info));
        format!("{}_{path}", info.architecture.to_lowercase())
    }

    /// Numbers in a row of the hook.
    pub fn width(&self, info: &ModelInfo) -> usize {
        match info.site(self.point).map(|s| s.width) {
            Some(Width::Heads) => info.n_heads * info.d_head,
            Some(Width::Mlp) => info.d_mlp,
            Some(Width::Vocab) => info.vocab_size,
            _ => info.d_model,
        }
    }

    /// What the tensor is, in a few words.
    pub fn describe(&self, info: &ModelInfo) -> &'static str {
        info.site(self.point).map_or("", |s| s.what)
    }

    fn fill(&self, info: &ModelInfo, name: impl Fn(&Site) -> &str) -> String {
        let layer = self.layer.map(|l| l.to_string()).unwrap_or_default();
        info.site(self.point).map(name).unwrap_or_default().replacen("{}", &layer, 1)
    }
}

fn underscores(path: &str) -> String {
    path.replace(['.', '#'], "_")
}

/// The layer in `name` if `template` describes it: `Some(None)` for a template without a layer.
fn fill_layer(template: &str, name: &str) -> Option<Option<usize>> {
    let Some((before, after)) = template.split_once("{}") else {
        return (template == name).then_some(None);
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = digits == "0" || !digits.starts_with('0');
    if plain && canonical { digits.parse().ok().map(Some) } else { None }
}

fn unknown(name: &str, info: &ModelInfo) -> ModelError {
    let asked =
        |(alias, point): &(&str, Point)| name.contains(alias) && info.site(*point).is_none();
    let absent = Point::ALIASES.iter().find(|point| asked(point));
    if let Some((alias, why)) = absent.and_then(|(alias, p)| Some((alias, info.absence(*p)?))) {
        let (point, architecture) = ((*alias).to_owned(), info.architecture.clone());
        return ModelError::NoSuchPoint { point, architecture, why };
    }
    let aliases = Point::ALIASES.iter().filter(|(_, p)| info.site(*p).is_some()).map(|(a, _)| *a);
    let paths = info.sites().iter().map(|s| s.path.replacen('@', info.prefix(), 1));
    let known: Vec<String> = aliases.map(str::to_owned).chain(paths).collect();
    ModelError::UnknownHook {
        name: name.to_owned(),
        architecture: info.architecture.clone(),
        known: known.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{family::FAMILIES, info::testing::tiny},
        *,
    };
    use crate::stage::Classify;

    fn infos() -> Vec<ModelInfo> {
        let classes = [("llama", "LlamaModel"), ("bert", "BertForMaskedLM")];
        let own = FAMILIES.iter().map(|family| (family.model_type, family.class));
        own.chain(classes).map(|(model_type, class)| tiny(model_type, class)).collect()
    }

    #[test]
    fn all_names_of_all_hooks_lead_back_to_them() {
        for info in infos() {
            let hooks = Hook::all(&info);
            assert!(hooks.len() > 7 * info.n_layers, "{}", info.model_type);
            for hook in hooks {
                for name in
                    [hook.module_path(&info), hook.transformer_lens(&info), hook.signature(&info)]
                {
                    assert_eq!(Hook::parse(&name, &info).unwrap(), hook, "{name}");
                }
                let bare = hook.module_path(&info);
                let bare = bare.strip_prefix(info.prefix()).unwrap_or(&bare);
                assert_eq!(Hook::parse(bare, &info).unwrap(), hook, "{bare}");
                if let (Some(alias), Some(layer)) = (hook.point.alias(), hook.layer) {
                    assert_eq!(Hook::alias(alias, layer, &info).unwrap(), hook);
                }
            }
        }
    }

    #[test]
    fn names_are_distinct() {
        for info in infos() {
            let hooks = Hook::all(&info);
            for name in [Hook::module_path, Hook::transformer_lens, Hook::signature] {
                let names: std::collections::HashSet<String> =
                    hooks.iter().map(|h| name(h, &info)).collect();
                assert_eq!(names.len(), hooks.len());
            }
        }
    }

    #[test]
    fn the_users_names_mean_what_they_say() {
        let info = tiny("llama", "LlamaForCausalLM");
        let parse = |name: &str| Hook::parse(name, &info).unwrap();
        let hook = |layer, point| Hook { layer: Some(layer), point };
        assert_eq!(parse("model.layers.1.post_attention_layernorm"), hook(1, Point::MlpIn));
        assert_eq!(
            parse("llamaforcausallm_model_layers_1_post_attention_layernorm"),
            hook(1, Point::MlpIn)
        );
        assert_eq!(parse("model.layers.1.post_attention_layernorm#in"), hook(1, Point::ResidMid));
        assert_eq!(parse("blocks.1.hook_resid_mid"), hook(1, Point::ResidMid));
        for (name, point) in
            [("embed", Point::Embed), ("final_norm", Point::FinalNorm), ("logits", Point::Logits)]
        {
            assert_eq!(parse(name), Hook { layer: None, point });
        }
        assert_eq!(Hook::alias("z", 1, &info).unwrap(), hook(1, Point::Z));
    }

    #[test]
    fn what_does_not_exist_is_a_usage_error_that_lists_what_does() {
        let info = tiny("llama", "LlamaForCausalLM");
        let unknown = Hook::parse("model.layers.1.nonsense", &info).unwrap_err();
        assert_eq!(unknown.kind().exit_code(), 2);
        assert!(unknown.hint().unwrap().contains("model.layers.{}.mlp.act_fn"));
        for name in ["model.layers.3", "blocks.3.hook_mlp_out", "model.layers.99999"] {
            let deep = Hook::parse(name, &info).unwrap_err();
            assert_eq!(deep.kind().exit_code(), 2);
            assert!(deep.hint().unwrap().contains("between 0 and 2"), "{name}");
        }
        for bad in ["", "model.layers.", "model.layers.-1", "model.layers.01", "blocks.1"] {
            assert!(
                matches!(Hook::parse(bad, &info), Err(ModelError::UnknownHook { .. })),
                "{bad}"
            );
        }
        assert!(Hook::alias("attn_in", 0, &info).is_err());
    }

    #[test]
    fn a_point_that_a_family_lacks_is_explained() {
        let info = tiny("gpt_neox", "GPTNeoXForCausalLM");
        for name in ["blocks.1.hook_resid_mid", "resid_mid"] {
            let error = Hook::alias(name, 1, &info).and(Hook::parse(name, &info)).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2);
            let words = error.to_string();
            assert!(words.contains("resid_mid") && words.contains("side by side"), "{words}");
        }
        let info = tiny("olmo2", "Olmo2ForCausalLM");
        let hook = Hook::alias("mlp_in", 1, &info).unwrap();
        assert_eq!(hook, Hook::alias("resid_mid", 1, &info).unwrap());
        assert_eq!(hook, Hook::parse("model.layers.1.mlp#in", &info).unwrap());
        let info = tiny("mixtral", "MixtralForCausalLM");
        let error = Hook::alias("mlp_act", 1, &info).unwrap_err().to_string();
        assert!(error.contains("experts"), "{error}");
    }
}
