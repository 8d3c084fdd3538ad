//! What `config.json` says about a model, and what is refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    ModelError,
    bert::{self, BertConfig},
    decoder::{self, DecoderConfig, DecoderJson},
    hook::{Hook, Point, Site},
    llama, qwen2,
};
use crate::kernels::activation::Activation;

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

/// No size of a real model comes near it; products of three stay far from overflow.
const LARGEST: usize = 1 << 20;

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

/// `config.json` before it is understood.
pub(super) struct ConfigFile {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl ConfigFile {
    fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(ModelError::Missing { what: "config.json", dir: dir.to_owned() });
        }
        let text = fs_err::read(&path).map_err(|e| ModelError::file(&path, e))?;
        let keys = serde_json::from_slice(&text).map_err(|e| ModelError::file(&path, e))?;
        Ok(Self { path, keys })
    }

    /// The value of a key; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// Refuses a key unless it is absent or has one of the values written in `inert`.
    pub fn refuse_unless(&self, key: &str, inert: &[&str]) -> Result<(), ModelError> {
        match self.get(key) {
            Some(value) if !inert.contains(&value.to_string().as_str()) => {
                let expected = if inert.is_empty() { "null".into() } else { inert.join(", ") };
                Err(self.unsupported(key, value, &expected))
            }
            _ => Ok(()),
        }
    }

    /// The error for a value that is not implemented.
    pub fn unsupported(&self, key: &str, found: impl ToString, expected: &str) -> ModelError {
        let (path, field) = (self.path.clone(), key.to_owned());
        ModelError::Unsupported { path, field, found: found.to_string(), expected: expected.into() }
    }

    /// The activation function under `key`.
    pub fn activation(&self, name: &str) -> Result<Activation, ModelError> {
        Activation::named(name)
            .ok_or_else(|| self.unsupported("hidden_act", format!("`{name}`"), Activation::NAMES))
    }

    /// Refuses sizes that no model has, among them those that make later arithmetic overflow.
    pub fn sizes(&self, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
        let limit = format!("1 to {LARGEST}");
        match sizes.iter().find(|(_, n)| !(1..=LARGEST).contains(n)) {
            Some((key, n)) => Err(self.unsupported(key, n, &limit)),
            None => Ok(()),
        }
    }

    /// Refuses a count that does not divide another.
    pub fn divides(&self, key: &str, divisor: usize, of: (&str, usize)) -> Result<(), ModelError> {
        if of.1.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(self.unsupported(key, divisor, &format!("a divisor of {} {}", of.0, of.1)))
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ModelError> {
        serde_json::from_value(Value::Object(self.keys.clone()))
            .map_err(|e| ModelError::file(&self.path, e))
    }
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
            Config::Llama(json) => decoder::info(llama::config(json, file)?, "LlamaForCausalLM"),
            Config::Qwen2(json) => decoder::info(qwen2::config(json, file)?, "Qwen2ForCausalLM"),
            Config::Bert(json) => bert::info(bert::config(json, file)?),
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

/// Floating-point operations to bring one token to a hook, in sentences of `mean_length` tokens.
///
/// Counts products only, two operations per multiplication; norms and the like add a few percent
/// of memory traffic and next to no arithmetic.
pub fn flops_per_token(info: &ModelInfo, hook: &Hook, mean_length: f64) -> f64 {
    let (d, mlp) = (info.d_model as f64, info.d_mlp as f64);
    let (heads, kv) = ((info.n_heads * info.d_head) as f64, (info.n_kv_heads * info.d_head) as f64);
    let (mlp_products, seen) = match &info.family {
        Family::Decoder(_) => (3.0, (mean_length + 1.0) / 2.0),
        Family::Bert(_) => (2.0, mean_length),
    };
    let products = d * (2.0 * heads + 2.0 * kv) + mlp_products * d * mlp;
    let attention = 2.0 * heads * seen;
    let last = match hook.point {
        Point::Logits => d * info.vocab_size as f64,
        Point::Pooler => d * d,
        _ => 0.0,
    };
    2.0 * (hook.blocks(info) as f64 * (products + attention) + last)
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
    use super::{testing::*, *};
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

    #[test]
    fn flops_grow_with_depth_and_length() {
        let info = tiny("llama", "LlamaForCausalLM");
        let at = |layer, length| {
            flops_per_token(&info, &Hook { layer: Some(layer), point: Point::ResidMid }, length)
        };
        assert_eq!(at(0, 1.0), 2.0 * (4.0 * 48.0 * 48.0 + 3.0 * 48.0 * 96.0 + 2.0 * 48.0));
        assert_eq!(at(2, 10.0), 3.0 * at(0, 10.0));
        assert!(at(0, 100.0) > at(0, 10.0));
    }
}
