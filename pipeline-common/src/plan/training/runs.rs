//! Finished trainings to learn from.

use std::collections::BTreeSet;

use clap::ValueEnum;
use glob::Pattern;
use serde::Serialize;

use super::laws::{Point, Sizes};
use crate::{
    remote::Reader,
    sae::{
        curves,
        settings::{Architecture, optimiser::default_lr},
        train::{TrainingMeta, record::Claim},
    },
    stage::{Failure, ResolvedConfig, Result, config::List, store::Pointer},
};

/// Settings that laws are in, and what tells repetitions apart.
const FREE: [&str; 9] = [
    "d_sae",
    "n_latents_multiplier",
    "top_k",
    "target_l0",
    "tokens",
    "epochs",
    "lr",
    "seed",
    "data_seed",
];

/// A finished training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finished {
    /// Its name.
    pub run_id: String,
    /// The capture.
    pub capture: String,
    /// Hook, or both of a transcoder.
    pub hooks: String,
    /// Width of the input.
    pub d_in: usize,
    /// SAE_ARCH.
    pub architecture: String,
    /// How large it is.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Peak learning rate.
    pub lr: f64,
    /// Fraction of variance unexplained on held-out rows.
    pub fvu: f64,
    /// Mean active latents of a held-out row.
    pub l0: f64,
    /// Tokens a second it was trained with.
    pub tokens_per_second: Option<f64>,
    #[serde(skip)]
    config: ResolvedConfig,
}

impl Finished {
    /// As laws see it.
    pub fn point(&self) -> Point {
        Point { sizes: self.sizes, lr: self.lr, fvu: self.fvu }
    }
}

/// The active latents a row that settings decide.
pub(super) fn k(config: &ResolvedConfig, architecture: Architecture) -> Option<f64> {
    let target =
        architecture == Architecture::JumpRelu && config.value("l0_mode") == Some("target");
    let key = if architecture.is_top_k() { "top_k" } else { "target_l0" };
    (architecture.is_top_k() || target).then(|| config.value(key)?.parse().ok()).flatten()
}

/// The trainings that FROM_RUNS names, each once, by name.
///
/// # Errors
/// A usage failure for a name that no run has, or a pattern that no finished training fits; files of a
/// run that are not what they should be.
pub(super) fn find(reader: &Reader, names: &[List<String>]) -> Result<Vec<Finished>> {
    let mut ids = BTreeSet::new();
    for name in names.iter().flat_map(|list| &list.0) {
        if !name.contains(['*', '?', '[']) {
            ids.insert(name.clone());
            continue;
        }
        let fitting = fitting(reader, name)?;
        if fitting.is_empty() {
            let what = format!("FROM_RUNS: no finished training is called `{name}`");
            let runs = reader.store().root().join("runs");
            return Err(Failure::usage(what).hint(format!("they are in `{}`", runs.display())));
        }
        ids.extend(fitting);
    }
    ids.iter().map(|id| read(reader, id)).collect()
}

/// Names of the finished trainings that a pattern fits.
fn fitting(reader: &Reader, pattern: &str) -> Result<Vec<String>> {
    let glob = Pattern::new(pattern)
        .map_err(|e| Failure::usage(format!("FROM_RUNS: `{pattern}` is not a pattern: {e}")))?;
    let runs = reader.store().root().join("runs");
    let mut names = vec![];
    for entry in fs_err::read_dir(&runs).into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let dir = entry.path();
        // A capture has no claim.
        if glob.matches(&name)
            && Claim::read(&dir)?.is_some()
            && TrainingMeta::read(&dir)?.is_some()
        {
            names.push(name);
        }
    }
    Ok(names)
}

fn read(reader: &Reader, id: &str) -> Result<Finished> {
    let (run_id, dir) = reader.find(Some(id), Pointer::Training)?;
    let meta = TrainingMeta::read_complete(&dir)?;
    let odd = |what: &str| {
        let what = format!("`{}`: {what}", dir.join("meta.json").display());
        Failure::input(what).hint("leave the run out of FROM_RUNS")
    };
    let name = meta.config.value("sae_arch").unwrap_or_default().to_owned();
    let architecture = Architecture::from_str(&name, true)
        .map_err(|_| odd(&format!("expected an architecture in `sae_arch`, found `{name}`")))?;
    let lr = match meta.config.value("lr") {
        None => default_lr(architecture, meta.d_sae),
        Some(text) => text.parse().map_err(|_| odd(&format!("`lr` is `{text}`")))?,
    };
    if !(meta.validation.fvu > 0.0 && lr > 0.0) {
        return Err(odd(&format!(
            "expected numbers above 0 to take logarithms of, found FVU {} and LR {lr}",
            meta.validation.fvu
        )));
    }
    let speed = curves::speed(&curves::read(&dir).1);
    let to = meta.target_hook.as_ref().map_or(String::new(), |hook| format!(" to {hook}"));
    Ok(Finished {
        run_id,
        capture: meta.capture_run_id,
        hooks: format!("{}{to}", meta.hook),
        d_in: meta.d_in,
        architecture: name,
        sizes: Sizes {
            d_sae: meta.d_sae as f64,
            k: k(&meta.config, architecture),
            tokens: meta.tokens as f64,
        },
        lr,
        fvu: meta.validation.fvu,
        l0: meta.validation.l0,
        tokens_per_second: speed.map(|(_, rate)| rate),
        config: meta.config,
    })
}

/// Settings of which finished trainings, or one of them and the planned one, have different values,
/// besides those that laws are in.
pub(super) fn differing(runs: &[Finished], planned: &ResolvedConfig) -> Vec<String> {
    let differs = |key: &&String| {
        let mut values = runs.iter().filter_map(|run| run.config.0.get(*key)).map(|s| &s.value);
        !FREE.contains(&key.as_str()) && values.any(|value| *value != planned.0[*key].value)
    };
    planned.0.keys().filter(differs).map(|key| key.to_uppercase()).collect()
}
