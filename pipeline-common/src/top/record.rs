//! What stage 03 found: the lines of `latents.jsonl` and `sentences.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A latent: a line of `latents.jsonl`; line `l` is latent `l`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRecord {
    /// Number of the latent, from 0.
    pub latent: u32,
    /// Fraction of rows in which it is active.
    pub density: f64,
    /// Rows in which it is active.
    pub fired: u64,
    /// Its largest activation; 0 if it never fired.
    pub max: f32,
    /// Mean activation over all rows: density times the mean activation where active.
    pub weighted: f64,
    /// The best sentences.
    pub top: Top,
    /// Sentences in which it is active, drawn evenly and ordered by their largest activation, in ten
    /// groups of equal size: weakest tenth first. Empty if it is active in fewer than ten.
    pub deciles: Vec<Vec<Ranked>>,
    /// Sentences drawn with a probability proportional to their largest activation.
    pub importance: Vec<Ranked>,
    /// Sentences in which it is silent, drawn evenly from the run.
    pub silent: Vec<u64>,
    /// Sentences in which a neighbour is active and this latent is silent.
    pub contrast: Vec<Contrast>,
    /// Its activations in each sentence named above in which it is active.
    pub activations: BTreeMap<u64, Activations>,
    /// How often which activation occurs.
    pub histogram: Histogram,
    /// Tokens whose logits it raises and lowers most; absent without a model's unembedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<LogitLens>,
    /// Latents with the nearest decoder rows, by cosine, nearest first.
    pub neighbours: Vec<Neighbour>,
    /// Latents that are active in the same rows more than by chance, by the cosine of the two sets of
    /// rows, an estimate.
    pub coactive: Vec<Neighbour>,
}

/// The best sentences by each aggregate, best first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    /// By the mean over all rows of the sentence, inactive ones counted as 0.
    pub mean: Vec<Ranked>,
    /// By the strongest row.
    pub max: Vec<Ranked>,
    /// By the last row.
    pub last: Vec<Ranked>,
}

/// A sentence and what it was chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranked {
    /// The aggregated activation.
    pub value: f32,
    /// Number of the sentence in the capture, from 0.
    pub sentence: u64,
}

/// A neighbour's sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The neighbour.
    pub latent: u32,
    /// The sentence.
    pub sentence: u64,
}

/// A latent's activations in a sentence: only tokens in which it is active, ascending.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activations {
    /// Places of the tokens in the sentence, from 0.
    pub at: Vec<u32>,
    /// The activations, as long as `at`.
    pub value: Vec<f32>,
}

/// Counts of activations on a logarithmic scale of four steps an octave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// `counts[i]` rows have an activation from `2^((first + i) / 4)` on, below the next one's.
    pub first: i32,
    /// Rows in each step.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Powers of two between steps: 2^(1/4), 2^(1/2), 2^(3/4).
    const STEPS: [f32; 3] = [1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_8];

    /// The step of a positive activation.
    fn step(value: f32) -> i32 {
        let bits = value.to_bits();
        let octave = (bits >> 23) as i32 - 127;
        let fraction = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
        octave * 4 + Self::STEPS.iter().filter(|step| fraction >= **step).count() as i32
    }

    /// Counts an activation; one that is not positive and finite is left out.
    pub fn count(&mut self, value: f32) {
        if value > 0.0 && value.is_finite() {
            self.add(Self::step(value), 1);
        }
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Self) {
        (other.first..).zip(&other.counts).for_each(|(step, n)| self.add(step, *n));
    }

    fn add(&mut self, step: i32, n: u64) {
        if self.counts.is_empty() {
            self.first = step;
        }
        if step < self.first {
            let more = (self.first - step) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first = step;
        }
        let at = (step - self.first) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += n;
    }
}

/// What a latent's decoder row does to the logits of a token, through the unembedding alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitLens {
    /// Tokens that it raises most, strongest first.
    pub promoted: Vec<TokenLogit>,
    /// Tokens that it lowers most, strongest first.
    pub suppressed: Vec<TokenLogit>,
}

/// A token and the change of its logit for each unit of activation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogit {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Change of the logit.
    pub logit: f32,
}

/// Another latent and how near it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// The other latent.
    pub latent: u32,
    /// A cosine.
    pub cosine: f32,
}

/// A sentence that some latent's line names: a line of `sentences.jsonl`, by ascending number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceRecord {
    /// Number of the sentence in the capture, from 0.
    pub sentence: u64,
    /// Index of its document in the dataset.
    pub document: u64,
    /// The ids of its rows' tokens.
    pub ids: Vec<u32>,
    /// Its text in the pieces of its rows' tokens, as long as `ids`; what lies before a token and
    /// belongs to no row (a dropped special token) is part of the piece after it.
    pub tokens: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_activation_is_in_the_step_that_its_logarithm_says() {
        for (value, step) in [(1.0, 0), (1.18, 0), (1.19, 1), (0.5, -4), (3.0, 6), (1e-3, -40)] {
            assert_eq!(Histogram::step(value), step, "{value}");
            assert_eq!((f64::from(value).log2() * 4.0).floor() as i32, step);
        }
        let mut all = Histogram::default();
        [2.0, f32::NAN, 0.0, 0.5, 2.1].into_iter().for_each(|v| all.count(v));
        assert_eq!((all.first, &all.counts[..]), (-4, &[1, 0, 0, 0, 0, 0, 0, 0, 2][..]));
        let mut other = Histogram::default();
        [0.25, 4.0].into_iter().for_each(|v| other.count(v));
        other.merge(&all);
        assert_eq!((other.first, other.counts.len(), other.counts.iter().sum()), (-8, 17, 5_u64));
    }
}
