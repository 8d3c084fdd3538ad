//! What `config.json` says about a model, and what is refused.

use std::path::Path;

use super::{
    ModelError,
    config_file::ConfigFile,
    encoder,
    family::{Description, FAMILIES},
    site::{Point, Site},
    transformer,
    weights::Scheme,
};
use crate::kernels::attention::Sees;

/// Ends of the names of encoders' classes that have no pooler.
const WITHOUT_POOLER: [&str; 3] = ["ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"];

/// A model as its `config.json` describes it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The class, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// The family, such as `llama`.
    pub model_type: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Inner width of the feed-forward block.
    pub d_mlp: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Positions.
    pub context_length: usize,
    /// Whether the language-model head is the embedding.
    pub tied: bool,
    /// Number format that `config.json` claims for the weights.
    pub dtype: Option<String>,
    /// What comes before the base model's modules, with its dot.
    prefix: String,
    /// Hook points.
    sites: Vec<Site>,
    pub(super) network: Description,
    /// How weights are stored in few bits, if they are.
    pub(super) scheme: Option<Scheme>,
}

impl ModelInfo {
    /// Reads `config.json` of a checkpoint's directory.
    ///
    /// # Errors
    /// A missing or malformed file, a family that is not implemented, or a setting that is not.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        Self::from_file(&ConfigFile::read(dir)?)
    }

    fn from_file(file: &ConfigFile) -> Result<Self, ModelError> {
        let model_type = file.maybe_text("model_type")?.unwrap_or_default();
        let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
            return Err(unknown_family(&file.path, model_type));
        };
        let network = (family.describe)(file)?;
        file.refuse_unread()?;
        let scheme = Scheme::read_config(file)?;
        let mut info = match &network {
            Description::Transformer(config) => of_transformer(config),
            Description::Encoder(config) => of_encoder(config),
        };
        let classes = file.get("architectures").and_then(|classes| classes.get(0));
        let class = classes.and_then(|class| class.as_str()).unwrap_or(family.class);
        info.architecture = class.to_owned();
        // Base models end their class's name so; the heads of some of them end theirs so too.
        if class.ends_with("Model") && !class.ends_with("HeadModel") {
            info.prefix.clear();
            // Without a head of its own, scores come from the embedding or not at all.
            info.sites.retain(|site| site.point != Point::Logits || info.tied);
        }
        if WITHOUT_POOLER.iter().any(|end| class.ends_with(end)) {
            info.sites.retain(|site| site.point != Point::Pooler);
        }
        info.model_type = model_type.to_owned();
        info.scheme = scheme;
        let dtype = file.maybe_text("dtype")?;
        info.dtype = dtype
            .map_or_else(|| file.maybe_text("torch_dtype"), |d| Ok(Some(d)))?
            .map(str::to_owned);
        Ok(info)
    }

    /// The hook points of the model.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The family's description of a point, if it has that point.
    pub fn site(&self, point: Point) -> Option<&Site> {
        self.sites().iter().find(|s| s.point == point)
    }

    /// Why the family has no such point, where its architecture is the reason.
    pub fn absence(&self, point: Point) -> Option<&'static str> {
        match (&self.network, point) {
            (Description::Transformer(c), Point::ResidMid) if c.residual.parallel => Some(
                "attention and feed-forward block work side by side on resid_pre, and what both \
                 add makes resid_post",
            ),
            (Description::Transformer(c), Point::MlpAct) if c.mlp.experts.is_some() => {
                Some("each token runs through experts of its own")
            }
            _ => None,
        }
    }

    /// What the class puts before its base model's module names: empty for the base model itself.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The layer to start with: the middle one, where features are neither tokens nor predictions.
    pub fn middle_layer(&self) -> usize {
        self.n_layers / 2
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        match &self.network {
            Description::Transformer(config) => config.parameters(),
            Description::Encoder(config) => config.parameters(),
        }
    }

    /// Whether tokens do not see what follows them: whether the model can write.
    pub fn is_causal(&self) -> bool {
        self.block_costs().iter().all(|(_, sees)| sees.ahead == 0)
    }

    /// Of each block, the multiplications by weights that it costs a token, and the keys that a token
    /// sees.
    pub(super) fn block_costs(&self) -> Vec<(f64, Sees)> {
        match &self.network {
            Description::Transformer(c) => {
                c.layers.iter().map(|layer| (c.products(layer), layer.sees)).collect()
            }
            Description::Encoder(c) => vec![(c.products(), Sees::ALL); c.n_layers],
        }
    }
}

fn of_transformer(c: &transformer::Config) -> ModelInfo {
    let heads = c.attention.heads;
    ModelInfo {
        architecture: String::new(),
        model_type: String::new(),
        n_layers: c.layers.len(),
        d_model: c.d_model,
        d_mlp: c.mlp.experts.map_or(c.mlp.width, |experts| experts.width),
        n_heads: heads.heads,
        n_kv_heads: heads.kv_heads,
        d_head: heads.d,
        vocab_size: c.vocab_size,
        context_length: c.context,
        tied: c.head.is_none_or(|head| head.tied),
        dtype: None,
        prefix: format!("{}.", c.names.base),
        sites: transformer::sites::sites(c),
        network: Description::Transformer(Box::new(c.clone())),
        scheme: None,
    }
}

fn of_encoder(c: &encoder::Config) -> ModelInfo {
    ModelInfo {
        architecture: String::new(),
        model_type: String::new(),
        n_layers: c.n_layers,
        d_model: c.d_model,
        d_mlp: c.d_mlp,
        n_heads: c.heads.heads,
        n_kv_heads: c.heads.kv_heads,
        d_head: c.heads.d,
        vocab_size: c.vocab_size,
        context_length: c.context(),
        tied: true,
        dtype: None,
        prefix: format!("{}.", c.base),
        sites: encoder::sites(),
        network: Description::Encoder(c.clone()),
        scheme: None,
    }
}

fn unknown_family(path: &Path, found: &str) -> ModelError {
    let names: Vec<&'static str> = FAMILIES.iter().map(|family| family.model_type).collect();
    let likeness = |name: &&&str| (strsim::jaro_winkler(found, name) * 1e6) as u64;
    let nearest = names.iter().max_by_key(likeness).copied().unwrap_or_default();
    ModelError::UnknownFamily {
        path: path.to_owned(),
        found: found.to_owned(),
        supported: names.join(", "),
        nearest,
    }
}

#[cfg(test)]
pub(super) mod testing {
    use serde_json::Value;

    use super::*;

    /// A model of three layers.
    pub fn tiny(model_type: &str, architecture: &str) -> ModelInfo {
        parse(&config(model_type, architecture)).unwrap()
    }

    /// The `config.json` of [`tiny`].
    pub fn config(model_type: &str, architecture: &str) -> Value {
        let mut config = serde_json::json!({
            "model_type": model_type, "architectures": [architecture], "hidden_size": 48,
            "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 64, "vocab_size": 100,
            "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64,
        });
        let own = match model_type {
            "gpt_neox" => serde_json::json!({ "rotary_pct": 0.5 }),
            "gemma2" | "gemma3_text" => serde_json::json!({ "sliding_window": 16 }),
            "mixtral" => serde_json::json!({ "num_local_experts": 4, "num_experts_per_tok": 2 }),
            "qwen2_moe" | "qwen3_moe" => serde_json::json!({
                "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 40,
            }),
            _ => serde_json::json!({}),
        };
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        config
    }

    pub fn parse(config: &Value) -> Result<ModelInfo, ModelError> {
        let keys = config.as_object().unwrap().clone();
        ModelInfo::from_file(&ConfigFile::new("config.json".into(), keys))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use crate::stage::{Classify, Kind};

    #[test]
    fn settings_that_are_not_implemented_are_refused_by_name() {
        let cases = [
            ("llama", "hidden_act", "\"quick_gelu\""),
            ("llama", "rope_scaling", r#"{"rope_type": "mrope"}"#),
            ("llama", "rope_scaling", r#"{"rope_type": "yarn", "factor": -4.0}"#),
            ("llama", "rope_scaling", r#"{"type": "dynamic"}"#),
            ("llama", "rope_theta", "0.5"),
            ("llama", "rope_parameters", r#"{"rope_type": "longrope"}"#),
            ("llama", "partial_rotary_factor", "0.5"),
            ("llama", "quantization_config", r#"{"quant_method": "gptq"}"#),
            ("llama", "sliding_window", "4096"),
            ("llama", "num_key_value_heads", "3"),
            ("llama", "hidden_size", "0"),
            ("llama", "head_dim", "7"),
            ("llama", "layer_types", r#"["full_attention", "sliding_attention", "x"]"#),
            ("gpt_neox", "rotary_pct", "0.25"),
            ("mixtral", "num_experts_per_tok", "5"),
            ("gemma2", "sliding_window", "0"),
            ("gpt2", "scale_attn_by_inverse_layer_idx", "true"),
            ("phi3", "tie_word_embeddings", "\"no\""),
            ("qwen2", "layer_types", r#"["full_attention", "sliding_attention"]"#),
            ("bert", "position_embedding_type", "\"relative_key\""),
            ("bert", "is_decoder", "true"),
            ("bert", "num_attention_heads", "5"),
        ];
        for (family, key, value) in cases {
            let mut config = config(family, "X");
            config[key] = serde_json::from_str(value).unwrap();
            let error = parse(&config).unwrap_err();
            assert_eq!(error.kind(), Kind::Input);
            let words = error.to_string();
            assert!(words.contains("config.json"), "{words}");
            let named = words.contains(key) || words.contains("partial_rotary_factor");
            assert!(named, "{family} {key}: {words}");
        }
    }

    #[test]
    fn settings_that_change_nothing_pass() {
        let mut config = config("qwen2", "Qwen2ForCausalLM");
        config["sliding_window"] = 32768.into();
        config["use_sliding_window"] = false.into();
        config["layer_types"] = vec!["full_attention"; 3].into();
        config["rope_scaling"] = serde_json::json!({"rope_type": "default"});
        config["partial_rotary_factor"] = 1.0.into();
        config["a_key_of_tomorrow"] = "x".into();
        parse(&config).unwrap();
    }

    #[test]
    fn an_unknown_family_names_itself_the_others_and_the_nearest() {
        let error = parse(&config("qwen3_next", "Qwen3NextForCausalLM")).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("`qwen3_next`") && words.contains("llama, mistral, "), "{words}");
        assert!(words.contains("nearest is `qwen3"), "{words}");
        assert_eq!(error.kind(), Kind::Input);
    }
}
