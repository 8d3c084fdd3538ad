//! Rotary positions: the angles by which queries and keys turn.

mod scaling;

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

pub use scaling::{RopeConfig, Source};

use crate::kernels::{attention::Span, rope};

/// Radians per position of each pair of a head's numbers.
///
/// Where they depend on a sentence's length (`dynamic`, `longrope`), each sentence goes by its own,
/// so that its rows do not depend on the batch; transformers goes by the longest of the batch, or for
/// `dynamic` by the longest that it has seen since the last short one.
#[derive(Clone, Debug)]
pub struct Rope {
    config: RopeConfig,
    /// Those of sentences within the original context.
    frequencies: Vec<f32>,
    /// Factor of cosine and sine.
    magnitude: f32,
}

impl Rope {
    /// The frequencies of a configuration.
    pub fn new(config: RopeConfig) -> Self {
        let (frequencies, magnitude) = (config.frequencies(1), config.magnitude());
        Self { config, frequencies, magnitude }
    }

    /// The angles of every query's position.
    pub fn angles(&self, spans: &[Span], device: &Device) -> Result<Angles> {
        let first = spans.iter().map(Span::offset).min().unwrap_or(0);
        let longest = spans.iter().map(|s| s.keys.len()).max().unwrap_or(0);
        let usual = Table::new(&self.frequencies, self.magnitude, first..longest);
        let (mut cos, mut sin) = (vec![], vec![]);
        for span in spans {
            let places = span.offset()..span.keys.len();
            if self.config.changes_at(places.end) {
                let own = self.config.frequencies(places.end);
                let own = Table::new(&own, self.magnitude, places.clone());
                own.copy(places, &mut cos, &mut sin);
            } else {
                usual.copy(places, &mut cos, &mut sin);
            }
        }
        let width = self.frequencies.len();
        let shape = (cos.len() / width, width);
        let tensor = |data| Tensor::from_vec(data, shape, device);
        Ok(Angles { cos: tensor(cos)?, sin: tensor(sin)? })
    }
}

/// Cosine and sine of consecutive positions, [positions, pairs].
struct Table {
    first: usize,
    width: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    fn new(frequencies: &[f32], magnitude: f32, places: Range<usize>) -> Self {
        let of = |f: fn(f32) -> f32| {
            let row = |p: usize| frequencies.iter().map(move |w| f(p as f32 * w) * magnitude);
            places.clone().flat_map(row).collect()
        };
        let (cos, sin) = (of(f32::cos), of(f32::sin));
        Self { first: places.start, width: frequencies.len(), cos, sin }
    }

    fn copy(&self, places: Range<usize>, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        let at = |place: usize| (place - self.first) * self.width;
        let range = at(places.start)..at(places.end.max(places.start));
        cos.extend_from_slice(&self.cos[range.clone()]);
        sin.extend_from_slice(&self.sin[range]);
    }
}

/// Cosine and sine of each row's angles, [rows, pairs] f32.
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Rotates `x` [rows, heads · d], heads of width `d`.
    pub fn rotate(&self, x: &Tensor, d: usize) -> Result<Tensor> {
        rope::rotate(x, d, &self.cos, &self.sin)
    }
}

#[cfg(test)]
mod tests {
    use super::{scaling::Scaling, *};
    use crate::kernels::attention::spans;

    fn rope(scaling: Scaling) -> Rope {
        Rope::new(RopeConfig { dims: 4, theta: 100.0, scaling })
    }

    #[test]
    fn angles_follow_positions() {
        let rope = rope(Scaling::Linear { factor: 2.0 });
        let angles = rope.angles(&spans(&[0, 2, 3]), &Device::Cpu).unwrap();
        let cos = angles.cos.to_vec2::<f32>().unwrap();
        assert_eq!(cos[0], [1.0, 1.0]);
        assert_eq!(cos[1], [0.5f32.cos(), 0.05f32.cos()]);
        assert_eq!(cos[2], cos[0]);
        let later = [Span { queries: 0..1, keys: 5..7 }];
        let angles = rope.angles(&later, &Device::Cpu).unwrap();
        assert_eq!(angles.cos.to_vec2::<f32>().unwrap(), [cos[1].clone()]);
    }

    #[test]
    fn a_long_sentence_leaves_short_ones_as_they_are() {
        for scaling in [
            Scaling::Dynamic { factor: 4.0, context: 8 },
            Scaling::Long {
                short: vec![1.0, 1.5],
                long: vec![3.0, 7.0],
                original: 8,
                magnitude: 1.1,
            },
        ] {
            let rope = rope(scaling);
            let rows = |starts: &[usize]| {
                let angles = rope.angles(&spans(starts), &Device::Cpu).unwrap();
                angles.sin.to_vec2::<f32>().unwrap()
            };
            let (short, long, both) = (rows(&[0, 8]), rows(&[0, 9]), rows(&[0, 8, 17]));
            assert_eq!(both, [&short[..], &long[..]].concat());
            assert_ne!(short[7], long[7]);
        }
    }
}
