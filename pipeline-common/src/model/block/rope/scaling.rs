//! Frequencies of rotary positions, with the scalings that published checkpoints use.

use std::f64::consts::PI;

use serde::Deserialize;
use serde_json::Value;

use super::super::super::{ModelError, config_file::ConfigFile};

/// `rope_scaling` or `rope_parameters` of a `config.json`, or a part of it for one kind of layers.
#[derive(Clone, Debug, Default, Deserialize)]
struct Json {
    rope_type: Option<String>,
    /// Older name of `rope_type`.
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
}

/// Where a family's `config.json` says what the rotary positions of some layers are.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The kind of layers, where `rope_parameters` may have a part for each.
    pub layers: Option<&'static str>,
    /// The key of the base, and the base without it.
    pub theta: (&'static str, f64),
    /// Whether `rope_scaling` holds for these layers.
    pub scaled: bool,
    /// The key of the part of a head that turns, and that part without it; none if all of it turns.
    pub partial: Option<(&'static str, f64)>,
}

impl Source {
    /// As Llama has it.
    pub const LLAMA: Self =
        Self { layers: None, theta: ("rope_theta", 10_000.0), scaled: true, partial: None };
}

/// Rotary positions of some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Numbers of a head that turn, in pairs.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies are stretched to longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear { factor: f64 },
    /// A base that grows with a sentence's length beyond the context ("NTK-aware").
    Dynamic { factor: f64, context: usize },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    /// The same with a ramp over the pairs, from `first` to `last` (arXiv:2309.00071).
    Yarn { factor: f64, first: f64, last: f64, original: f64, magnitude: f64 },
    /// A divisor for each pair, others for sentences beyond the original context (arXiv:2402.13753).
    Long { short: Vec<f32>, long: Vec<f32>, original: usize, magnitude: f64 },
}

impl RopeConfig {
    /// What `config.json` says for heads of width `d`, in a model of `context` positions.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], naming the type or the number that is wrong.
    pub fn read(
        file: &ConfigFile,
        source: Source,
        (d, context): (usize, usize),
    ) -> Result<Self, ModelError> {
        let (key, json) = json(file, source)?;
        let (name, default) = source.theta;
        let theta = json.rope_theta.map_or_else(|| file.number_or(name, default), Ok)?;
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(file.unsupported(name, theta, "a number above 1"));
        }
        let partial = match source.partial {
            Some((name, default)) => {
                json.partial_rotary_factor.map_or_else(|| file.number_or(name, default), Ok)?
            }
            None => json.partial_rotary_factor.unwrap_or(1.0),
        };
        let dims = (d as f64 * partial) as usize;
        let whole = source.partial.is_some() || dims == d;
        if !whole || dims == 0 || dims > d || !dims.is_multiple_of(2) {
            let expected = format!("an even part of the {d} numbers of a head");
            return Err(file.unsupported("partial_rotary_factor", partial, &expected));
        }
        let fields = Fields { json: &json, key: &key, file, context };
        let scaling = fields.scaling(dims, theta)?;
        Ok(Self { dims, theta, scaling })
    }

    /// Positions that a model of `context` positions can tell apart.
    pub fn reach(&self, context: usize) -> usize {
        let longer = |original: f64, factor: f64| context.max((original * factor) as usize);
        match self.scaling {
            Scaling::Linear { factor } | Scaling::Dynamic { factor, .. } => {
                longer(context as f64, factor)
            }
            Scaling::Llama3 { factor, original, .. } | Scaling::Yarn { factor, original, .. } => {
                longer(original, factor)
            }
            Scaling::None | Scaling::Long { .. } => context,
        }
    }

    /// Whether frequencies of a sentence of this length are others than those of a short one.
    pub fn changes_at(&self, length: usize) -> bool {
        match self.scaling {
            Scaling::Dynamic { context, .. } => length > context,
            Scaling::Long { original, .. } => length > original,
            _ => false,
        }
    }

    /// Whether sentences of both lengths have the same frequencies.
    pub fn alike(&self, a: usize, b: usize) -> bool {
        match self.scaling {
            Scaling::Dynamic { .. } => a == b || !(self.changes_at(a) || self.changes_at(b)),
            _ => self.changes_at(a) == self.changes_at(b),
        }
    }

    /// Factor of cosine and sine.
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { magnitude, .. } | Scaling::Long { magnitude, .. } => magnitude as f32,
            _ => 1.0,
        }
    }

    /// Radians per position of each pair, in a sentence of `length` tokens: `theta^(-2i/dims)`, scaled.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let dims = self.dims as f32;
        let plain = |theta: f32, i: usize| 1.0 / theta.powf(2.0 * i as f32 / dims);
        let theta = self.theta as f32;
        let pairs = 0..self.dims / 2;
        match &self.scaling {
            Scaling::Dynamic { factor, context } if length > *context => {
                let longer = factor * length as f64 / *context as f64 - (factor - 1.0);
                let power = self.dims as f64 / (self.dims as f64 - 2.0);
                let theta = (self.theta * longer.powf(power)) as f32;
                pairs.map(|i| plain(theta, i)).collect()
            }
            Scaling::Long { short, long, original, .. } => {
                let factors = if length > *original { long } else { short };
                let frequency =
                    |(i, f): (usize, &f32)| 1.0 / (f * theta.powf(2.0 * i as f32 / dims));
                pairs.zip(factors).map(frequency).collect()
            }
            scaling => pairs.map(|i| scaling.apply(i, plain(theta, i))).collect(),
        }
    }
}

impl Scaling {
    /// The frequency of a pair.
    fn apply(&self, pair: usize, frequency: f32) -> f32 {
        let between =
            |kept: f32, factor: f64| (1.0 - kept) * frequency / factor as f32 + kept * frequency;
        match *self {
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low, high, original } => {
                let turns = original as f32 * frequency / (2.0 * PI) as f32;
                between(((turns - low as f32) / (high - low) as f32).clamp(0.0, 1.0), factor)
            }
            Self::Yarn { factor, first, last, .. } => {
                let ramp = (pair as f32 - first as f32) / (last - first) as f32;
                between(1.0 - ramp.clamp(0.0, 1.0), factor)
            }
            _ => frequency,
        }
    }
}

/// The part of the configuration that holds for these layers, and its key.
fn json(file: &ConfigFile, source: Source) -> Result<(String, Json), ModelError> {
    let parameters = file.get("rope_parameters");
    let scaling = file.get("rope_scaling");
    let nested = |p: &Value| p.as_object().is_some_and(|p| p.values().any(Value::is_object));
    let (key, value) = match (parameters, source.layers) {
        (Some(all), Some(layers)) if nested(all) => {
            (format!("rope_parameters.{layers}"), all.get(layers))
        }
        _ if !source.scaled => (String::new(), None),
        (Some(flat), _) => ("rope_parameters".to_owned(), Some(flat)),
        (None, _) => ("rope_scaling".to_owned(), scaling),
    };
    match value.filter(|v| !v.is_null()) {
        Some(value) => {
            let json = Json::deserialize(value);
            Ok((
                key.clone(),
                json.map_err(|e| ModelError::file(&file.path, format!("`{key}`: {e}")))?,
            ))
        }
        None => Ok((key, Json::default())),
    }
}

/// The numbers of a scaling, checked as they are taken.
struct Fields<'a> {
    json: &'a Json,
    key: &'a str,
    file: &'a ConfigFile,
    context: usize,
}

impl Fields<'_> {
    fn scaling(&self, dims: usize, theta: f64) -> Result<Scaling, ModelError> {
        let json = self.json;
        let factor = || self.positive("factor", json.factor);
        match json.rope_type.as_deref().or(json.kind.as_deref()).unwrap_or("default") {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: factor()? }),
            "dynamic" if dims > 2 => {
                Ok(Scaling::Dynamic { factor: factor()?, context: self.context })
            }
            "llama3" => self.llama3(factor()?),
            // Phi-3 first called its own scaling `su`.
            "longrope" | "su" => self.long(dims),
            "yarn" if json.short_factor.is_some() => self.long(dims),
            "yarn" => self.yarn(dims, theta),
            other => {
                let known = "default, linear, dynamic, llama3, yarn, longrope";
                Err(self.file.unsupported(self.key, format!("`{other}`"), known))
            }
        }
    }

    fn llama3(&self, factor: f64) -> Result<Scaling, ModelError> {
        let low = self.positive("low_freq_factor", self.json.low_freq_factor)?;
        let high = self.positive("high_freq_factor", self.json.high_freq_factor)?;
        if high <= low {
            let name = format!("{}.high_freq_factor", self.key);
            return Err(self.file.unsupported(&name, high, "more than low_freq_factor"));
        }
        Ok(Scaling::Llama3 { factor, low, high, original: self.original()? })
    }

    fn yarn(&self, dims: usize, theta: f64) -> Result<Scaling, ModelError> {
        let (json, original) = (self.json, self.original()?);
        let factor = json.factor.unwrap_or(self.context as f64 / original);
        let factor = self.positive("factor", Some(factor))?;
        // The pair that turns that often within the original context.
        let pair =
            |turns: f64| dims as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut first, mut last) =
            (pair(json.beta_fast.unwrap_or(32.0)), pair(json.beta_slow.unwrap_or(1.0)));
        if json.truncate.unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(dims as f64 - 1.0));
        if first == last {
            last += 0.001;
        }
        let usual = |scale: f64| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
        let magnitude = match (json.mscale, json.mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => usual(m) / usual(all),
            _ => usual(1.0),
        };
        let magnitude = json.attention_factor.unwrap_or(magnitude);
        Ok(Scaling::Yarn { factor, first, last, original, magnitude })
    }

    fn long(&self, dims: usize) -> Result<Scaling, ModelError> {
        let original = self.original()?;
        let factor = self.json.factor.unwrap_or(self.context as f64 / original);
        let magnitude = if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 };
        let magnitude = self.json.attention_factor.unwrap_or(magnitude);
        let short = self.factors("short_factor", &self.json.short_factor, dims / 2)?;
        let long = self.factors("long_factor", &self.json.long_factor, dims / 2)?;
        Ok(Scaling::Long { short, long, original: original as usize, magnitude })
    }

    /// Positions that the model was trained on first.
    fn original(&self) -> Result<f64, ModelError> {
        let key = "original_max_position_embeddings";
        let own = self.json.original_max_position_embeddings.unwrap_or(self.context as f64);
        self.positive(key, Some(self.file.number_or(key, own)?))
    }

    fn factors(
        &self,
        name: &str,
        factors: &Option<Vec<f32>>,
        n: usize,
    ) -> Result<Vec<f32>, ModelError> {
        match factors {
            Some(factors) if factors.len() == n && factors.iter().all(|f| *f > 0.0) => {
                Ok(factors.clone())
            }
            other => {
                let found = other.as_ref().map_or("absent".into(), |f| format!("{f:?}"));
                let name = format!("{}.{name}", self.key);
                Err(self.file.unsupported(&name, found, &format!("{n} positive numbers")))
            }
        }
    }

    fn positive(&self, name: &str, value: Option<f64>) -> Result<f64, ModelError> {
        match value {
            Some(v) if v > 0.0 && v.is_finite() => Ok(v),
            other => {
                let found = other.map_or("absent".into(), |v| v.to_string());
                let name = format!("{}.{name}", self.key);
                Err(self.file.unsupported(&name, found, "a positive number"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        let turns = |n: f32| 2.0 * PI as f32 * n / 64.0;
        assert_eq!(scaling.apply(0, turns(5.0)), turns(5.0));
        assert!((scaling.apply(0, turns(0.5)) - turns(0.5) / 8.0).abs() < 1e-7);
        let between = scaling.apply(0, turns(2.5));
        assert!((between - turns(2.5) * (0.5 + 0.5 / 8.0)).abs() < 1e-6);
    }

    #[test]
    fn yarn_keeps_the_first_pairs_and_divides_the_last() {
        let scaling =
            Scaling::Yarn { factor: 4.0, first: 1.0, last: 3.0, original: 64.0, magnitude: 1.0 };
        let found: Vec<f32> = (0..5).map(|pair| scaling.apply(pair, 1.0)).collect();
        assert_eq!(found, [1.0, 1.0, 0.625, 0.25, 0.25]);
    }
}
