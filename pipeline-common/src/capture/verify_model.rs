//! `--verify-model`: is this the model it should be?
//!
//! Runs the first documents through all layers: norms and non-finite numbers of the residual
//! stream and of the hooks, perplexity, and what the model writes. Weights that are damaged, of
//! another model or in a precision they do not bear show here, not after a night of capture.

use std::fmt::Write;

use candle_core::{DType, Device, Tensor};

use super::stage::{Job, SaveActivations};
use crate::{
    model::{Hook, HookedModel, ModelInfo, Packed, Point, scores::Prediction},
    shard::Stats,
    stage::{Failure, Result},
    text::tokenizer::Encoding,
};

/// Documents that are run.
const DOCUMENTS: u64 = 8;
/// Continuations that are written.
const CONTINUATIONS: usize = 3;
/// Tokens of a continuation's beginning.
const BEGINNING: usize = 8;
/// Tokens of a continuation.
const TOKENS: usize = 20;

/// Figures of one hook.
struct Line {
    hook: Hook,
    stats: Stats,
    nan: u64,
    infinite: u64,
}

impl Line {
    fn new(hook: Hook, info: &ModelInfo) -> Self {
        Self { hook, stats: Stats::new(hook.width(info)), nan: 0, infinite: 0 }
    }

    fn add(&mut self, values: &[f32]) {
        self.nan += values.iter().filter(|x| x.is_nan()).count() as u64;
        self.infinite += values.iter().filter(|x| x.is_infinite()).count() as u64;
        self.stats.add(values);
    }
}

/// Sum of the losses over predicted tokens.
#[derive(Default)]
struct Loss {
    nats: f64,
    tokens: u64,
}

impl Loss {
    /// Adds a sentence's predictions; `logits` `[ids, vocabulary]`.
    fn add(&mut self, logits: &[f32], ids: &[u32]) {
        let width = logits.len() / ids.len();
        for (scores, next) in logits.chunks_exact(width).zip(&ids[1..]) {
            self.nats += Prediction::new(scores).cross_entropy(*next);
            self.tokens += 1;
        }
    }

    fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

/// Runs the model on the first documents; what it found, as text.
///
/// # Errors
/// An input failure that names the first hook with a number that is not finite; no text at all.
pub fn verify(stage: &SaveActivations, job: &Job) -> Result<String> {
    let hooks = hooks(job);
    let model = stage.load(job, &hooks)?;
    let sample = stage.source(job).tokenise(0..DOCUMENTS)?.encodings;
    let sample: Vec<Encoding> = sample.into_iter().filter(|e| e.special.contains(&false)).collect();
    if sample.is_empty() {
        let what = format!("the first {DOCUMENTS} documents have no text to verify the model on");
        return Err(Failure::input(what).hint("check TEXT_FIELD"));
    }
    let mut lines: Vec<Line> = hooks.iter().map(|h| Line::new(*h, &job.info)).collect();
    let mut loss = Loss::default();
    for sentence in &sample {
        run(model.as_ref(), &mut lines, &mut loss, &sentence.ids)?;
    }
    let mut text = table(&lines, &job.info);
    finite(&lines, &job.info)?;
    if hooks.iter().any(|h| h.point == Point::Logits) {
        text += &perplexity(&loss, job.info.vocab_size);
        for sentence in sample.iter().take(CONTINUATIONS) {
            text += &continuation(model.as_ref(), job, sentence)?;
        }
    } else {
        text += "perplexity and continuations: none, this class has no scores of the next token\n";
    }
    Ok(text)
}

/// The residual stream after every layer, the job's hooks, and the scores of a language model.
fn hooks(job: &Job) -> Vec<Hook> {
    let info = &job.info;
    // A bare `LlamaModel` has no head, unless the embedding is one.
    let head = info.tied || !info.architecture.ends_with("Model");
    let wanted = |h: &Hook| match h.point {
        Point::ResidPost => true,
        Point::Logits => head || job.hooks.contains(h),
        _ => job.hooks.contains(h),
    };
    Hook::all(info).into_iter().filter(wanted).collect()
}

fn run(model: &dyn HookedModel, lines: &mut [Line], loss: &mut Loss, ids: &[u32]) -> Result<()> {
    let hooks: Vec<Hook> = lines.iter().map(|l| l.hook).collect();
    model.forward(&Packed::new([ids]), &hooks, &mut |hook, tensor| {
        let values = values(&tensor)?;
        lines[hook].add(&values);
        if hooks[hook].point == Point::Logits {
            loss.add(&values, ids);
        }
        Ok(None)
    })?;
    Ok(())
}

fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn table(lines: &[Line], info: &ModelInfo) -> String {
    let names: Vec<String> = lines.iter().map(|l| l.hook.module_path(info)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut text = format!(
        "{:width$} {:>11} {:>11} {:>11} {:>9} {:>9}\n",
        "hook", "mean norm", "rms norm", "max |x|", "NaN", "Inf"
    );
    for (name, line) in names.iter().zip(lines) {
        let stats = &line.stats;
        let _infallible = writeln!(
            text,
            "{name:width$} {:>11.4} {:>11.4} {:>11.4} {:>9} {:>9}",
            stats.mean_norm(),
            stats.rms_norm(),
            stats.max_abs,
            line.nan,
            line.infinite
        );
    }
    text
}

/// Refuses what is not finite, at the first hook that shows it.
fn finite(lines: &[Line], info: &ModelInfo) -> Result<()> {
    let Some(bad) = lines.iter().find(|l| l.nan + l.infinite > 0) else { return Ok(()) };
    let layer = bad.hook.layer.map(|l| format!("layer {l}, ")).unwrap_or_default();
    let all = bad.stats.rows * bad.hook.width(info) as u64;
    let what = format!(
        "{layer}hook `{}`: of {all} numbers {} are NaN and {} infinite",
        bad.hook.module_path(info),
        bad.nan,
        bad.infinite
    );
    Err(Failure::input(what).hint(
        "the checkpoint is damaged there, or does not bear DTYPE: fetch it again, or set DTYPE=f32",
    ))
}

fn perplexity(loss: &Loss, vocabulary: usize) -> String {
    if loss.tokens == 0 {
        return "perplexity: none, every sentence of the sample is one token\n".to_owned();
    }
    let (nats, perplexity) = (loss.mean(), loss.mean().exp());
    if perplexity > vocabulary as f64 {
        tracing::warn!(
            "perplexity {perplexity:.0} is worse than guessing among {vocabulary} tokens: these are \
             not the weights of this model, or not its tokenizer"
        );
    }
    format!("perplexity {perplexity:.4} ({nats:.6} nats a token over {} tokens)\n", loss.tokens)
}

/// What the model goes on with after a document's first words, always taking the likeliest token.
fn continuation(model: &dyn HookedModel, job: &Job, sentence: &Encoding) -> Result<String> {
    let logits = Hook { layer: None, point: Point::Logits };
    let mut ids: Vec<u32> = sentence.ids.iter().copied().take(BEGINNING).collect();
    let begin = ids.len();
    while ids.len() < (begin + TOKENS).min(job.info.context_length) {
        let mut next = 0;
        model.forward(&Packed::new([&ids]), &[logits], &mut |_, tensor| {
            let scores = tensor.get(tensor.dim(0)? - 1)?;
            next = scores.argmax(0)?.to_scalar()?;
            Ok(None)
        })?;
        ids.push(next);
    }
    let (before, after) =
        (job.tokenizer.decode(&ids[..begin])?, job.tokenizer.decode(&ids[begin..])?);
    Ok(format!("continuation {before:?} -> {after:?}\n"))
}
