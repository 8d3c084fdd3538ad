//! What `config.json` says about a model, and what is refused.

use std::path::Path;

use serde::Deserialize;

use super::{
    ModelError,
    bert::{self, BertConfig},
    config_file::ConfigFile,
    decoder::{self, DecoderConfig, DecoderJson},
    llama, qwen2,
    site::{Point, Site},
};

/// Families there are, by `model_type`.
pub const FAMILIES: [&str; 3] = ["llama", "qwen2", "bert"];

/// Keys that change the arithmetic in other families, with the values that leave it as it is.
/// Anything else is refused: a model that computes something different must not pass for this one.
const REFUSED: &[(&str, &[&str])] = &[
    ("quantization_config", &[]),
    ("partial_rotary_factor", &["1.0", "1"]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("embedding_multiplier", &["1.0", "1"]),
    ("attention_multiplier", &[]),
    ("residual_multiplier", &["1.0", "1"]),
    ("logits_scaling", &["1.0", "1"]),
    ("rope_interleaved", &["false"]),
    ("no_rope_layers", &["[]"]),
    ("use_qk_norm", &["false"]),
    ("alibi", &["false"]),
    ("num_local_experts", &["1"]),
    ("is_decoder", &["false"]),
    ("add_cross_attention", &["false"]),
];

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
    pub(super) family: Family,
}

/// A family and its settings.
#[derive(Clone, Debug)]
pub(super) enum Family {
    Decoder(DecoderConfig),
    Bert(BertConfig),
}

/// `config.json`, by its `model_type`.
#[derive(Deserialize)]
#[serde(tag = "model_type", rename_all = "snake_case")]
enum Config {
    Llama(DecoderJson),
    Qwen2(DecoderJson),
    Bert(bert::BertJson),
}

/// What every family's `config.json` holds.
#[derive(Deserialize)]
struct Common {
    model_type: String,
    architectures: Option<Vec<String>>,
    dtype: Option<String>,
    torch_dtype: Option<String>,
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
        let common: Common = file.parse()?;
        if !FAMILIES.contains(&common.model_type.as_str()) {
            return Err(unknown_family(&file.path, common.model_type));
        }
        for (key, inert) in REFUSED {
            file.refuse_unless(key, inert)?;
        }
        let mut info = match file.parse()? {
            Config::Llama(json) => decoder(llama::config(json, file)?, "LlamaForCausalLM"),
            Config::Qwen2(json) => decoder(qwen2::config(json, file)?, "Qwen2ForCausalLM"),
            Config::Bert(json) => encoder(bert::config(json, file)?),
        };
        if let Some([architecture, ..]) = common.architectures.as_deref() {
            info.architecture.clone_from(architecture);
        }
        info.model_type = common.model_type;
        info.dtype = common.dtype.or(common.torch_dtype);
        Ok(info)
    }

    /// The hook points of the model's family.
    pub fn sites(&self) -> &'static [Site] {
        match self.family {
            Family::Decoder(_) => decoder::SITES,
            Family::Bert(_) => bert::SITES,
        }
    }

    /// The family's description of a point, if it has that point.
    pub fn site(&self, point: Point) -> Option<&'static Site> {
        self.sites().iter().find(|s| s.point == point)
    }

    /// What the class puts before its base model's module names: empty for the base model itself.
    pub fn prefix(&self) -> &'static str {
        match self.family {
            _ if self.architecture.ends_with("Model") => "",
            Family::Decoder(_) => "model.",
            Family::Bert(_) => "bert.",
        }
    }

    /// The layer to start with: the middle one, where features are neither tokens nor predictions.
    pub fn middle_layer(&self) -> usize {
        self.n_layers / 2
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        match &self.family {
            Family::Decoder(config) => decoder::parameters(config),
            Family::Bert(config) => bert::parameters(config),
        }
    }
}

/// The description of a decoder.
fn decoder(config: DecoderConfig, architecture: &str) -> ModelInfo {
    ModelInfo {
        architecture: architecture.to_owned(),
        model_type: String::new(),
        n_layers: config.n_layers,
        d_model: config.d_model,
        d_mlp: config.d_mlp,
        n_heads: config.heads.heads,
        n_kv_heads: config.heads.kv_heads,
        d_head: config.heads.d,
        vocab_size: config.vocab_size,
        context_length: config.context,
        tied: config.tied,
        dtype: None,
        family: Family::Decoder(config),
    }
}

/// The description of an encoder.
fn encoder(config: BertConfig) -> ModelInfo {
    ModelInfo {
        architecture: "BertModel".to_owned(),
        model_type: String::new(),
        n_layers: config.n_layers,
        d_model: config.d_model,
        d_mlp: config.d_mlp,
        n_heads: config.heads.heads,
        n_kv_heads: config.heads.kv_heads,
        d_head: config.heads.d,
        vocab_size: config.vocab_size,
        context_length: config.context,
        tied: true,
        dtype: None,
        family: Family::Bert(config),
    }
}

fn unknown_family(path: &Path, found: String) -> ModelError {
    let distance = |name: &&&str| (strsim::jaro_winkler(&found, name) * 1e6) as u64;
    let nearest = FAMILIES.iter().max_by_key(distance).copied().unwrap_or_default();
    ModelError::UnknownFamily {
        path: path.to_owned(),
        found,
        supported: FAMILIES.join(", "),
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
            "max_position_embeddings": 64, "vocab_size": 100, "hidden_act": "silu",
        });
        if model_type == "bert" {
            config["hidden_act"] = "gelu".into();
        }
        config
    }

    pub fn parse(config: &Value) -> Result<ModelInfo, ModelError> {
        let keys = config.as_object().unwrap().clone();
        ModelInfo::from_file(&ConfigFile { path: "config.json".into(), keys })
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
            ("llama", "rope_scaling", r#"{"rope_type": "yarn", "factor": 4.0}"#),
            ("llama", "rope_scaling", r#"{"type": "dynamic", "factor": 2.0}"#),
            ("llama", "rope_parameters", r#"{"rope_type": "longrope"}"#),
            ("llama", "partial_rotary_factor", "0.5"),
            ("llama", "quantization_config", r#"{"quant_method": "gptq"}"#),
            ("llama", "sliding_window", "4096"),
            ("llama", "num_key_value_heads", "3"),
            ("llama", "hidden_size", "0"),
            ("llama", "head_dim", "7"),
            ("qwen2", "use_sliding_window", "true"),
            ("qwen2", "layer_types", r#"["full_attention", "sliding_attention"]"#),
            ("bert", "position_embedding_type", "\"relative_key\""),
            ("bert", "is_decoder", "true"),
            ("bert", "num_attention_heads", "5"),
        ];
        for (family, key, value) in cases {
            let mut config = config(family, "X");
            config[key] = serde_json::from_str(value).unwrap();
            if key == "use_sliding_window" {
                config["sliding_window"] = 16.into();
            }
            let error = parse(&config).unwrap_err();
            assert_eq!(error.kind(), Kind::Input);
            let words = error.to_string();
            assert!(words.contains("config.json"), "{words}");
            let named = words.contains(key) || words.contains("sliding_window");
            assert!(named, "{family} {key}: {words}");
        }
    }

    #[test]
    fn settings_that_change_nothing_pass() {
        let mut config = config("qwen2", "Qwen2ForCausalLM");
        config["sliding_window"] = 32768.into();
        config["use_sliding_window"] = false.into();
        config["layer_types"] = serde_json::json!(["full_attention", "full_attention"]);
        config["rope_scaling"] = serde_json::json!({"rope_type": "default"});
        config["partial_rotary_factor"] = 1.0.into();
        config["a_key_of_tomorrow"] = "x".into();
        parse(&config).unwrap();
    }

    #[test]
    fn an_unknown_family_names_itself_the_others_and_the_nearest() {
        let error = parse(&config("qwen3", "Qwen3ForCausalLM")).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("`qwen3`") && words.contains("llama, qwen2, bert"), "{words}");
        assert!(words.contains("nearest is `qwen2`"), "{words}");
        assert_eq!(error.kind(), Kind::Input);
    }
}
