//! Frequencies of rotary positions, with the scalings that published checkpoints use.

use std::f32::consts::PI;

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;

use super::super::{ModelError, config_file::ConfigFile};
use crate::kernels::rope;

/// `rope_scaling` or `rope_parameters` of a `config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeJson {
    rope_type: Option<String>,
    /// Older name of `rope_type`.
    #[serde(rename = "type")]
    kind: Option<String>,
    pub rope_theta: Option<f64>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

/// How frequencies are stretched to longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear { factor: f32 },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 { factor: f32, low: f32, high: f32, original: f32 },
}

impl RopeJson {
    /// The scaling, or an error that names the type or the number that is wrong.
    pub fn scaling(
        &self,
        file: &ConfigFile,
        key: &str,
    ) -> std::result::Result<Scaling, ModelError> {
        let positive = |name: &str, value: Option<f32>| match value {
            Some(v) if v > 0.0 && v.is_finite() => Ok(v),
            other => {
                let found = other.map_or("absent".into(), |v| v.to_string());
                Err(file.unsupported(&format!("{key}.{name}"), found, "a positive number"))
            }
        };
        let factor = || positive("factor", self.factor);
        match self.rope_type.as_deref().or(self.kind.as_deref()).unwrap_or("default") {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: factor()? }),
            "llama3" => {
                let low = positive("low_freq_factor", self.low_freq_factor)?;
                let high = positive("high_freq_factor", self.high_freq_factor)?;
                if high <= low {
                    let name = format!("{key}.high_freq_factor");
                    return Err(file.unsupported(&name, high, "more than low_freq_factor"));
                }
                let original = positive(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?;
                Ok(Scaling::Llama3 { factor: factor()?, low, high, original })
            }
            other => Err(file.unsupported(key, format!("`{other}`"), "default, linear, llama3")),
        }
    }
}

impl Scaling {
    fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

/// Radians per position of each pair of a head's numbers.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// Frequencies `theta^(-2i/d)` for heads of width `d`, scaled.
    pub fn new(d: usize, theta: f64, scaling: Scaling) -> Self {
        let exponent = |i: usize| 2.0 * i as f32 / d as f32;
        let frequencies =
            (0..d / 2).map(|i| scaling.apply(1.0 / (theta as f32).powf(exponent(i)))).collect();
        Self { frequencies }
    }

    /// The angles of each row's position.
    pub fn angles(&self, positions: &[u32], device: &Device) -> Result<Angles> {
        let longest = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let shape = (positions.len(), self.frequencies.len());
        let table = |f: fn(f32) -> f32| {
            let row = |p: usize| self.frequencies.iter().map(move |w| f(p as f32 * w));
            let rows: Vec<Vec<f32>> = (0..longest).map(|p| row(p).collect()).collect();
            let data: Vec<f32> =
                positions.iter().flat_map(|p| rows[*p as usize].iter().copied()).collect();
            Tensor::from_vec(data, shape, device)
        };
        Ok(Angles { cos: table(f32::cos)?, sin: table(f32::sin)? })
    }
}

/// Cosine and sine of each row's angles, [rows, d/2] f32.
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Rotates `x` [rows, heads · d].
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        rope::rotate(x, &self.cos, &self.sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        let turns = |n: f32| 2.0 * PI * n / 64.0;
        assert_eq!(scaling.apply(turns(5.0)), turns(5.0));
        assert!((scaling.apply(turns(0.5)) - turns(0.5) / 8.0).abs() < 1e-7);
        let between = scaling.apply(turns(2.5));
        assert!((between - turns(2.5) * (0.5 + 0.5 / 8.0)).abs() < 1e-6);
    }

    #[test]
    fn angles_follow_positions() {
        let rope = Rope::new(4, 100.0, Scaling::Linear { factor: 2.0 });
        let angles = rope.angles(&[0, 1, 0], &Device::Cpu).unwrap();
        let cos = angles.cos.to_vec2::<f32>().unwrap();
        assert_eq!(cos[0], [1.0, 1.0]);
        assert_eq!(cos[1], [0.5f32.cos(), 0.05f32.cos()]);
        assert_eq!(cos[2], cos[0]);
    }
}
