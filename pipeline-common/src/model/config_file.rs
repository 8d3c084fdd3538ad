//! `config.json` as keys and values, and the ways to refuse one.

use std::{
    cell::RefCell,
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::ModelError;
use crate::kernels::activation::Activation;

/// No size of a real model comes near it; products of three stay far from overflow.
const LARGEST: usize = 1 << 20;

/// Keys that change the arithmetic of some families, with the values that leave it as it is.
///
/// A family that reads such a key knows what it means; in all others, any other value is refused: a
/// model that computes something different must not pass for this one.
const KNOWN_BY_FEW: &[(&str, &[&str])] = &[
    ("partial_rotary_factor", &["1.0", "1"]),
    ("rotary_pct", &["1.0", "1"]),
    ("rope_interleaved", &["false"]),
    ("no_rope_layers", &["[]"]),
    ("alibi", &["false"]),
    ("position_embedding_type", &["\"absolute\""]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("embedding_multiplier", &["1.0", "1"]),
    ("attention_multiplier", &[]),
    ("residual_multiplier", &["1.0", "1"]),
    ("logits_scaling", &["1.0", "1"]),
    ("logit_scale", &["1.0", "1"]),
    ("use_qk_norm", &["false"]),
    ("qk_layernorm", &["false"]),
    ("clip_qkv", &[]),
    ("sliding_window", &[]),
    ("use_sliding_window", &["false"]),
    ("use_bidirectional_attention", &["false"]),
    ("use_parallel_residual", &["false"]),
    ("scale_attn_by_inverse_layer_idx", &["false"]),
    ("num_local_experts", &["1"]),
    ("num_experts", &["0", "1"]),
    ("is_decoder", &["false"]),
    ("add_cross_attention", &["false"]),
];

/// `config.json` before it is understood.
pub(super) struct ConfigFile {
    pub path: PathBuf,
    keys: Map<String, Value>,
    /// Keys that a family asked for.
    read: RefCell<HashSet<String>>,
}

impl ConfigFile {
    /// The keys of a file.
    pub fn new(path: PathBuf, keys: Map<String, Value>) -> Self {
        Self { path, keys, read: RefCell::default() }
    }

    /// Reads the file of a checkpoint's directory.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(ModelError::Missing { what: "config.json", dir: dir.to_owned() });
        }
        let text = fs_err::read(&path).map_err(|e| ModelError::file(&path, e))?;
        let keys = serde_json::from_slice(&text).map_err(|e| ModelError::file(&path, e))?;
        Ok(Self::new(path, keys))
    }

    /// The keys below another, which win over those beside it.
    pub fn section(&self, key: &str) -> Self {
        let mut keys = self.keys.clone();
        if let Some(Value::Object(inner)) = self.get(key) {
            keys.extend(inner.clone());
        }
        Self::new(self.path.clone(), keys)
    }

    /// The same with values for keys that are absent.
    pub fn or(&self, defaults: Value) -> Self {
        let mut keys = self.keys.clone();
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                keys.entry(key).or_insert(value);
            }
        }
        Self::new(self.path.clone(), keys)
    }

    /// Whether the key is there, null included.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The value of a key; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// A size, from 1 on.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        let found = self.get(key).ok_or_else(|| self.unsupported(key, "absent", "a size"))?;
        let size = found.as_u64().and_then(|n| usize::try_from(n).ok());
        match size.filter(|n| (1..=LARGEST).contains(n)) {
            Some(size) => Ok(size),
            None => Err(self.unsupported(key, found, &format!("1 to {LARGEST}"))),
        }
    }

    /// A size, if it is given.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key).map(|_| self.size(key)).transpose()
    }

    /// A number, if it is given.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let number = |v: &Value| {
            let finite = v.as_f64().filter(|x| x.is_finite());
            finite.ok_or_else(|| self.unsupported(key, v, "a number"))
        };
        self.get(key).map(number).transpose()
    }

    /// A number.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.maybe_number(key)?.unwrap_or(default))
    }

    /// A number above zero.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.number_or(key, default)? {
            x if x > 0.0 => Ok(x),
            other => Err(self.unsupported(key, other, "a positive number")),
        }
    }

    /// Yes or no.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let flag = |v: &Value| v.as_bool().ok_or_else(|| self.unsupported(key, v, "true, false"));
        self.get(key).map_or(Ok(default), flag)
    }

    /// A text, if it is given.
    pub fn maybe_text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let text = |v| Value::as_str(v).ok_or_else(|| self.unsupported(key, v, "a text"));
        self.get(key).map(text).transpose()
    }

    /// The activation function under `key`.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation, ModelError> {
        let name = self.maybe_text(key)?.unwrap_or(default);
        Activation::named(name)
            .ok_or_else(|| self.unsupported(key, format!("`{name}`"), Activation::NAMES))
    }

    /// For each of `n` layers, whether `layer_types` calls it `sliding_attention`.
    pub fn sliding_layers(
        &self,
        n: usize,
        default: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let Some(types) = self.get("layer_types") else { return Ok((0..n).map(default).collect()) };
        let expected = format!("full_attention or sliding_attention, {n} times");
        let kind = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.unsupported("layer_types", kind, &expected)),
        };
        let kinds = types.as_array().map(Vec::as_slice).unwrap_or_default();
        if kinds.len() != n {
            return Err(self.unsupported(
                "layer_types",
                format!("{} items", kinds.len()),
                &expected,
            ));
        }
        kinds.iter().map(kind).collect()
    }

    /// Refuses a key unless it is absent or has one of the values written in `inert`.
    fn refuse_unless(&self, key: &str, inert: &[&str]) -> Result<(), ModelError> {
        match self.keys.get(key).filter(|v| !v.is_null()) {
            Some(value) if !inert.contains(&value.to_string().as_str()) => {
                let expected = if inert.is_empty() { "null".into() } else { inert.join(", ") };
                Err(self.unsupported(key, value, &expected))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what would change the arithmetic and was not asked for.
    pub fn refuse_unread(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        for (key, inert) in KNOWN_BY_FEW.iter().filter(|(key, _)| !read.contains(*key)) {
            self.refuse_unless(key, inert)?;
        }
        let kinds = self.keys.get("layer_types").and_then(Value::as_array);
        match kinds.into_iter().flatten().find(|kind| *kind != "full_attention") {
            Some(kind) if !read.contains("layer_types") => {
                Err(self.unsupported("layer_types", kind, "full_attention"))
            }
            _ => Ok(()),
        }
    }

    /// The error for a value that is not implemented.
    pub fn unsupported(&self, key: &str, found: impl ToString, expected: &str) -> ModelError {
        let (path, field) = (self.path.clone(), key.to_owned());
        ModelError::Unsupported { path, field, found: found.to_string(), expected: expected.into() }
    }

    /// Refuses a count that does not divide another.
    pub fn divides(&self, key: &str, divisor: usize, of: (&str, usize)) -> Result<(), ModelError> {
        if of.1.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(self.unsupported(key, divisor, &format!("a divisor of {} {}", of.0, of.1)))
    }
}
