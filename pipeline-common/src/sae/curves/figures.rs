//! Which curves are drawn together.

use super::Pace;
use crate::{
    plot::{Figure, Series},
    sae::history::{Record, Validation},
};

/// What all curves are over.
const STEPS: &str = "steps";

/// What of a record is drawn.
type Of = fn(&Record) -> f64;

/// The figures under one heading.
pub struct Group {
    pub heading: &'static str,
    pub figures: Vec<Figure>,
}

/// Every figure of a training.
pub fn groups(history: &[Record], timing: &[Pace]) -> Vec<Group> {
    vec![
        Group { heading: "Reconstruction", figures: reconstruction(history) },
        Group { heading: "Sparsity", figures: sparsity(history) },
        Group { heading: "Optimisation", figures: optimisation(history) },
        Group { heading: "Speed", figures: vec![speed(timing)] },
    ]
}

fn reconstruction(history: &[Record]) -> Vec<Figure> {
    let fvu = vec![line(history, "training", |r| r.fvu), held_out(history, |v| v.fvu)];
    // An architecture's loss has only some of the parts, and before its warm-up a part is 0: a
    // logarithmic axis has no place for that.
    let parts: [(_, Of); 4] = [
        ("loss", |r| r.loss),
        ("squared error", |r| r.mse),
        ("sparsity penalty", |r| r.sparsity),
        ("auxiliary, unweighted", |r| r.aux),
    ];
    let part = |(name, of): (_, Of)| {
        let made = history.iter().map(|r| (r.step as f64, of(r)));
        Series::line(name, made.filter(|(_, value)| *value != 0.0))
    };
    let parts = parts.into_iter().map(part).collect();
    vec![
        Figure::new("Unexplained variance (FVU)", STEPS, fvu),
        Figure::new("Loss and its parts", STEPS, parts),
    ]
}

fn sparsity(history: &[Record]) -> Vec<Figure> {
    let l0 = vec![line(history, "training", |r| r.l0), held_out(history, |v| v.l0)];
    let dead = vec![line(history, "training", |r| r.dead_fraction)];
    let mut figures = vec![
        Figure::new("Active latents a row (L0)", STEPS, l0),
        Figure::linear("Share of latents that are dead", STEPS, dead),
    ];
    if history.iter().any(|r| r.sparsity > 0.0) {
        let factor = vec![line(history, "factor", |r| r.sparsity_factor)];
        let l1 = vec![line(history, "training", |r| r.l1)];
        figures.push(Figure::linear("Warm-up of the sparsity coefficient", STEPS, factor));
        figures.push(Figure::new("Sum of activations a row (L1)", STEPS, l1));
    }
    figures
}

fn optimisation(history: &[Record]) -> Vec<Figure> {
    let rate = vec![line(history, "peak times schedule", |r| r.lr)];
    let norm = vec![line(history, "before clipping", |r| r.gradient_norm)];
    vec![Figure::linear("Learning rate", STEPS, rate), Figure::new("Gradient norm", STEPS, norm)]
}

fn speed(timing: &[Pace]) -> Figure {
    let rate = timing.iter().map(|pace| (pace.step as f64, pace.tokens_per_second));
    Figure::linear("Tokens a second", STEPS, vec![Series::line("since the point before", rate)])
}

fn line(history: &[Record], name: &'static str, of: Of) -> Series {
    Series::line(name, history.iter().map(|record| (record.step as f64, of(record))))
}

fn held_out(history: &[Record], of: fn(&Validation) -> f64) -> Series {
    let checked = history.iter().filter_map(|r| Some((r.step as f64, of(r.validation.as_ref()?))));
    Series::dots("held out", checked)
}
