//! What the model predicts with the SAE's reconstruction in place of its activations.
//!
//! The documents' sentences are run four times: unchanged, with the reconstruction, with zeros and
//! with the rows' mean where the capture has rows; rows that its policies left out stay as they are.
//! What is counted are predictions made at replaced rows.

use std::ops::AddAssign;

use candle_core::Tensor;
use clap::{Args, builder::BoolishValueParser};
use rayon::prelude::*;
use serde::Serialize;

use super::{bootstrap, input::Input};
use crate::{
    capture::{CapturedModel, CapturedModelArgs},
    kernels::host,
    model::{self, Hook, HookedModel, ModelInfo, Packed, Point, scores::Prediction},
    sae::{Sae, encode::Encoder},
    stage::{Context, Failure, Result},
    text::Tokenizer,
};

/// Scores of predictions kept at a time, for each of two passes: 128 MiB.
const SCORES: usize = 32 << 20;
/// Tokens a pass at most, unless one sentence is longer.
const TOKENS: usize = 4096;

/// Whether and with which model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "With the model")]
pub struct SpliceArgs {
    /// Also run the model with the SAE in place of its activations: cross-entropy, share recovered of
    /// what zeros and the mean cost, KL divergence
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub with_model: bool,
    #[command(flatten)]
    model: CapturedModelArgs,
}

/// Sums over predictions, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    tokens: u64,
    unchanged: f64,
    spliced: f64,
    zero: f64,
    mean: f64,
    divergence: f64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.unchanged += other.unchanged;
        self.spliced += other.spliced;
        self.zero += other.zero;
        self.mean += other.mean;
        self.divergence += other.divergence;
    }
}

/// A figure with its 95 % interval; none for a single document.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// The interval.
    pub interval: Option<[f64; 2]>,
}

/// Next-token prediction with the SAE in the model; cross-entropies in nats a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predictions {
    /// Predicted tokens.
    pub tokens: u64,
    /// Sentences left out because their text gives other tokens than were captured.
    pub sentences_left_out: u64,
    /// Cross-entropy of the model itself.
    pub cross_entropy: Estimate,
    /// With the SAE's reconstruction in place of the hook's rows.
    pub spliced: Estimate,
    /// With zeros in their place.
    pub zero_ablation: Estimate,
    /// With their mean in their place.
    pub mean_ablation: Estimate,
    /// What of zero ablation's increase the reconstruction avoids; 1 is a perfect SAE.
    pub recovered_from_zero: Estimate,
    /// What of mean ablation's increase the reconstruction avoids.
    pub recovered_from_mean: Estimate,
    /// Kullback-Leibler divergence of the spliced model's predictions from the model's own.
    pub divergence: Estimate,
}

impl Sums {
    /// In the order of [`Predictions`]' estimates.
    fn figures(&self) -> [f64; 7] {
        let n = self.tokens.max(1) as f64;
        let recovered = |worst: f64| (worst - self.spliced) / (worst - self.unchanged);
        [
            self.unchanged / n,
            self.spliced / n,
            self.zero / n,
            self.mean / n,
            recovered(self.zero),
            recovered(self.mean),
            self.divergence / n,
        ]
    }
}

impl Predictions {
    fn new(documents: &[Sums], sentences_left_out: u64, seed: u64) -> Self {
        let mut all = Sums::default();
        documents.iter().for_each(|document| all += *document);
        let seen: Vec<Sums> = documents.iter().copied().filter(|d| d.tokens > 0).collect();
        let intervals = bootstrap::intervals(&seen, seed, Sums::figures);
        let values = all.figures();
        let [cross_entropy, spliced, zero, mean, from_zero, from_mean, divergence] =
            std::array::from_fn(|i| Estimate {
                value: values[i],
                interval: intervals.map(|all| all[i]),
            });
        Self {
            tokens: all.tokens,
            sentences_left_out,
            cross_entropy,
            spliced,
            zero_ablation: zero,
            mean_ablation: mean,
            recovered_from_zero: from_zero,
            recovered_from_mean: from_mean,
            divergence,
        }
    }
}

/// A sentence as the model reads it.
struct Sentence {
    document: u32,
    ids: Vec<u32>,
    /// Positions that have rows.
    kept: Vec<usize>,
}

/// What takes the rows' place.
#[derive(Clone, Copy)]
enum Instead<'a> {
    Nothing,
    Reconstruction,
    /// The same for all, `[d_out]`.
    Row(&'a [f32]),
}

/// The model and the hooks between which the SAE goes.
pub struct Splice<'a> {
    sae: &'a Sae,
    model: Box<dyn HookedModel>,
    tokenizer: Tokenizer,
    max_length: usize,
    /// What is encoded, what is replaced (the same unless it is a transcoder), and the scores.
    hooks: [Hook; 3],
}

impl<'a> Splice<'a> {
    /// Loads the capture's model.
    ///
    /// # Errors
    /// A model that does not predict tokens, is not the capture's, or cannot be found.
    pub fn load(
        context: &Context,
        device: &str,
        args: &SpliceArgs,
        input: &'a Input,
    ) -> Result<Self> {
        let capture = &input.capture;
        let CapturedModel { id, dir, info, tokenizer, precision } =
            CapturedModel::find(capture, &args.model)?;
        let hooks = hooks(input, &info, &id)?;
        let model = model::load(&dir, &hooks, &model::device(device)?, precision)?;
        let max_length = capture.config.value("max_length").and_then(|n| n.parse().ok());
        let max_length = max_length.unwrap_or(info.context_length);
        context.leave_if_asked("nothing is written before the end")?;
        Ok(Self { sae: &input.sae, model, tokenizer, max_length, hooks })
    }

    /// Runs the chosen documents; `mean` `[d_out]` is that of the rows that are replaced.
    ///
    /// # Errors
    /// What the model reports; an input failure if no sentence's text gives the captured tokens, or if
    /// a cross-entropy is not finite.
    pub fn run(
        &self,
        context: &Context,
        input: &Input,
        mean: &[f64],
        seed: u64,
    ) -> Result<Predictions> {
        let (sentences, left_out) = self.sentences(input)?;
        let mut documents = vec![Sums::default(); input.chosen.documents];
        let mean: Vec<f32> = mean.iter().map(|x| *x as f32).collect();
        let tokens: usize = sentences.iter().map(|s| s.ids.len()).sum();
        let mut progress = context.progress("splicing", tokens as u64, "tokens");
        let mut encoder = self.sae.encoder();
        for batch in batches(&sentences, self.model.info().vocab_size) {
            self.batch(batch, &mean, &mut encoder, &mut documents)?;
            let n = batch.iter().map(|s| s.ids.len() as u64).sum();
            progress.advance(n, n, "");
            context.leave_if_asked("nothing is written before the end")?;
        }
        progress.finish("");
        let predictions = Predictions::new(&documents, left_out, seed);
        if predictions.tokens == 0 {
            let what = "no document has two captured tokens in a row whose text gives them again";
            return Err(Failure::input(what).hint("set REVISION to what the capture was made with"));
        }
        let finite = [predictions.cross_entropy, predictions.spliced].map(|e| e.value.is_finite());
        if finite != [true, true] {
            let what = format!(
                "cross-entropy is {} without and {} with the SAE",
                predictions.cross_entropy.value, predictions.spliced.value
            );
            return Err(
                Failure::input(what).hint("see what 01_save_activations --verify-model says")
            );
        }
        Ok(predictions)
    }

    /// The chosen documents' sentences, and how many give other tokens than were captured.
    fn sentences(&self, input: &Input) -> Result<(Vec<Sentence>, u64)> {
        let (set, chosen) = (&input.rows.output().set, &input.chosen);
        let (mut sentences, mut left_out) = (vec![], 0);
        for shard in 0..set.shards() {
            let (tokens, first) = (set.tokens(shard)?, set.first_row(shard));
            let mut found = vec![];
            for sentence in 0..tokens.sentences() {
                let rows = tokens.sentence_rows(sentence);
                if let Ok(place) = chosen.rows.binary_search(&(first + rows.start)) {
                    found.push((sentence, chosen.document_of[place]));
                }
            }
            let texts: Vec<String> =
                found.iter().map(|(sentence, _)| tokens.text(*sentence).to_owned()).collect();
            let encodings = self.tokenizer.encode_batch(&texts, self.max_length)?;
            for ((sentence, document), encoding) in found.into_iter().zip(encodings) {
                let captured = tokens.sentence_rows(sentence).map(|row| tokens.token(row));
                let captured: Vec<(usize, u32)> =
                    captured.map(|token| (token.position as usize, token.id)).collect();
                let ids = encoding.ids;
                if captured.iter().any(|(position, id)| ids.get(*position) != Some(id)) {
                    left_out += 1;
                    continue;
                }
                let kept = captured.into_iter().map(|(position, _)| position).collect();
                sentences.push(Sentence { document, ids, kept });
            }
        }
        Ok((sentences, left_out))
    }

    fn batch(
        &self,
        sentences: &[Sentence],
        mean: &[f32],
        encoder: &mut Encoder,
        documents: &mut [Sums],
    ) -> Result<()> {
        let batch = Packed::new(sentences.iter().map(|s| &s.ids));
        let starts = sentences.iter().zip(&batch.starts);
        let kept: Vec<usize> =
            starts.clone().flat_map(|(s, start)| s.kept.iter().map(move |p| start + p)).collect();
        let counted: Vec<Counted> = starts.flat_map(|(s, start)| Counted::of(s, *start)).collect();
        if counted.is_empty() {
            return Ok(());
        }
        let zeros = vec![0.0; mean.len()];
        let mut scores = |instead| self.scores(&batch, (&kept, &counted), instead, encoder);
        let width = self.model.info().vocab_size;
        let unchanged = scores(Instead::Nothing)?;
        let spliced = scores(Instead::Reconstruction)?;
        add(documents, &counted, |n, next| {
            let [p, q] = [&unchanged, &spliced].map(|scores| prediction(scores, width, n));
            Sums {
                tokens: 1,
                unchanged: p.cross_entropy(next),
                spliced: q.cross_entropy(next),
                divergence: p.divergence(q),
                ..Sums::default()
            }
        });
        drop((unchanged, spliced));
        let zero = scores(Instead::Row(&zeros))?;
        add(documents, &counted, |n, next| Sums {
            zero: prediction(&zero, width, n).cross_entropy(next),
            ..Sums::default()
        });
        drop(zero);
        let mean = scores(Instead::Row(mean))?;
        add(documents, &counted, |n, next| Sums {
            mean: prediction(&mean, width, n).cross_entropy(next),
            ..Sums::default()
        });
        Ok(())
    }

    /// Scores `[counted, vocabulary]` with something else in place of the `kept` rows.
    fn scores(
        &self,
        batch: &Packed,
        (kept, counted): (&[usize], &[Counted]),
        instead: Instead<'_>,
        encoder: &mut Encoder,
    ) -> Result<Vec<f32>> {
        let (mut reconstruction, mut scores) = (vec![], vec![]);
        self.model.forward(batch, &self.hooks, &mut |index, tensor| match (index, instead) {
            (2, _) => {
                scores = host::gather(&tensor, counted.iter().map(|c| c.row))?;
                Ok(None)
            }
            (0, Instead::Reconstruction) => {
                let x = host::gather(&tensor, kept.iter().copied())?;
                let latents = self.sae.encode_with(encoder, &x);
                reconstruction = self.sae.reconstruct(&x, &latents);
                Ok(None)
            }
            (0, _) | (_, Instead::Nothing) => Ok(None),
            (_, Instead::Reconstruction) => {
                let rows = reconstruction.chunks_exact(self.sae.params.d_out);
                replace(&tensor, kept, rows).map(Some)
            }
            (_, Instead::Row(row)) => replace(&tensor, kept, std::iter::repeat(row)).map(Some),
        })?;
        Ok(scores)
    }
}

/// A prediction that is counted.
struct Counted {
    document: u32,
    /// Row in the batch.
    row: usize,
    /// The token that came next.
    next: u32,
}

impl Counted {
    /// The predictions of a sentence, whose first token is row `start`.
    fn of(sentence: &Sentence, start: usize) -> impl Iterator<Item = Self> {
        let has_next = |p: &&usize| **p + 1 < sentence.ids.len();
        sentence.kept.iter().filter(has_next).map(move |p| Self {
            document: sentence.document,
            row: start + p,
            next: sentence.ids[p + 1],
        })
    }
}

/// The n-th of predictions `[counted, width]`.
fn prediction(scores: &[f32], width: usize, n: usize) -> Prediction<'_> {
    Prediction::new(&scores[n * width..][..width])
}

/// Adds what `of` makes of each prediction, given its number and the token that came next, to its
/// document.
fn add(documents: &mut [Sums], counted: &[Counted], of: impl Fn(usize, u32) -> Sums + Sync) {
    let sums: Vec<Sums> = counted.par_iter().enumerate().map(|(n, c)| of(n, c.next)).collect();
    counted.iter().zip(sums).for_each(|(c, sums)| documents[c.document as usize] += sums);
}

/// Sentences some at a time, so that tokens and scores stay bounded.
fn batches(sentences: &[Sentence], vocabulary: usize) -> impl Iterator<Item = &[Sentence]> {
    let most = TOKENS.min(SCORES / vocabulary.max(1));
    let mut rest = sentences;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |s: &&Sentence| {
            tokens += s.ids.len();
            tokens <= most
        };
        let n = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, others) = rest.split_at(n);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The tensor with others in place of some rows.
fn replace<'r>(
    tensor: &Tensor,
    rows: &[usize],
    others: impl Iterator<Item = &'r [f32]>,
) -> candle_core::Result<Tensor> {
    let width = tensor.dim(1)?;
    let mut values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    for (row, other) in rows.iter().zip(others) {
        values[row * width..][..width].copy_from_slice(other);
    }
    Tensor::from_vec(values, tensor.dims(), tensor.device())
}

/// The capture's hooks in this model, and the scores.
fn hooks(input: &Input, info: &ModelInfo, id: &str) -> Result<[Hook; 3]> {
    let encoded = Hook::parse(&input.hook, info)?;
    let replaced = match &input.target_hook {
        Some(name) => Hook::parse(name, info)?,
        None => encoded,
    };
    if info.site(Point::Logits).is_none() {
        let what = format!("`{id}` ({}) does not predict the next token", info.architecture);
        return Err(Failure::usage(what).hint("unset WITH_MODEL: cross-entropy needs a decoder"));
    }
    let order = Hook::all(info);
    let place = |hook: &Hook| order.iter().position(|h| h == hook);
    if place(&encoded) > place(&replaced) {
        let what = format!(
            "hook `{}` is computed after `{}`, which it is to replace",
            encoded.module_path(info),
            replaced.module_path(info)
        );
        return Err(
            Failure::usage(what).hint("unset WITH_MODEL, or set TARGET_HOOK to a later hook")
        );
    }
    let logits = Hook { layer: None, point: Point::Logits };
    Ok([encoded, replaced, logits])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(tokens: u64, scale: f64) -> Sums {
        let [unchanged, spliced, zero, mean] = [1.0, 1.25, 3.0, 2.0].map(|x| x * scale);
        Sums { tokens, unchanged, spliced, zero, mean, divergence: 0.5 * scale }
    }

    #[test]
    fn recovered_is_the_share_of_the_damage_that_is_avoided() {
        let found = Predictions::new(&[sums(2, 1.0), Sums::default(), sums(6, 3.0)], 5, 0);
        assert_eq!((found.tokens, found.sentences_left_out), (8, 5));
        assert_eq!(found.cross_entropy.value, 0.5);
        assert_eq!(found.recovered_from_zero.value, 0.875);
        assert_eq!(found.recovered_from_mean.value, 0.75);
        assert_eq!(found.divergence.value, 0.25);
        let [low, high] = found.recovered_from_zero.interval.unwrap();
        assert!((low - 0.875).abs() < 1e-12 && (high - 0.875).abs() < 1e-12);
        assert_eq!(Predictions::new(&[sums(2, 1.0)], 0, 0).spliced.interval, None);
    }

    #[test]
    fn batches_are_bounded_and_hold_every_sentence_once() {
        let sentence = |n: usize| Sentence { document: 0, ids: vec![0; n], kept: vec![] };
        let sentences: Vec<Sentence> = [3, 5000, 2, 4000, 90, 7].map(sentence).into();
        let sizes = |vocabulary| -> Vec<usize> {
            batches(&sentences, vocabulary).map(<[Sentence]>::len).collect()
        };
        assert_eq!(sizes(100), [1, 1, 3, 1]);
        assert_eq!(sizes(SCORES / 10), [1, 1, 1, 1, 1, 1]);
    }
}
