//! The answer for a terminal.

use std::fmt::Write;

use super::{
    answer::Answer,
    forecast::{Forecast, LrFrom},
    laws::{Interval, Sizes},
    rate::Source,
    runs::Finished,
};
use crate::{
    plan::hours,
    plot::tidy,
    stage::{
        columns::aligned,
        progress::{bytes, thousands},
    },
};

/// All of it.
pub(super) fn table(answer: &Answer) -> String {
    let mut out = lines(&costs(answer));
    if let Some(forecast) = &answer.forecast {
        out += &format!("\n{}\n{}", runs(forecast), lines(&findings(forecast)));
        forecast.notes.iter().for_each(|note| {
            // Writing to a string does not fail.
            writeln!(out, "{:12}{note}", "note").unwrap_or_default();
        });
    }
    out
}

fn lines(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(key, value)| format!("{key:12}{value}\n")).collect()
}

/// What it costs.
pub(super) fn costs(answer: &Answer) -> Vec<(&'static str, String)> {
    let (budget, flop) = (&answer.budget, &answer.budget.flop);
    let k = answer.k.map_or(String::new(), |k| format!(", k {}", tidy(k)));
    let capture = answer.capture.as_deref().unwrap_or("none yet: only D_IN is known");
    let hooks = answer.hooks.as_deref().unwrap_or("-");
    let dense = if budget.active.is_none() { ", were all latents active" } else { "" };
    let share = |part: f64| format!("{:.0} %", 100.0 * part / flop.total());
    let mut rows = vec![
        ("capture", capture.to_owned()),
        ("hook", format!("{hooks} (d_in {})", answer.d_in)),
        (
            "SAE",
            format!(
                "{}, d_sae {}{k}; {} parameters",
                answer.architecture,
                thousands(answer.d_sae as u64),
                thousands(budget.parameters)
            ),
        ),
        (
            "tokens",
            format!(
                "{} in {} steps of {}",
                thousands(budget.tokens),
                thousands(budget.steps),
                thousands(budget.step_rows)
            ),
        ),
        (
            "arithmetic",
            format!(
                "{:.3e} FLOP a token{dense}: encoder {}, decoder {}, gradients {}, optimiser {}",
                flop.total(),
                share(flop.encoder),
                share(flop.decoder + flop.skip),
                share(flop.gradients),
                share(flop.optimiser)
            ),
        ),
        (
            "",
            format!(
                "{:.3e} FLOP in all, {} more at most while latents are dead",
                budget.total_flop(),
                share(flop.auxiliary_at_most)
            ),
        ),
    ];
    rows.extend(demands(answer));
    rows
}

/// What it takes of a machine.
fn demands(answer: &Answer) -> Vec<(&'static str, String)> {
    let (budget, memory) = (&answer.budget, &answer.budget.memory);
    vec![
        ("speed", speed(answer)),
        ("time", hours(answer.hours)),
        (
            "reading",
            format!(
                "{}/s at that speed, {} in all ({} B a token)",
                bytes(answer.read_per_second as u64),
                bytes(budget.read()),
                budget.read_per_token
            ),
        ),
        (
            "memory",
            format!(
                "{}: parameters and moments {} ({} B a parameter), gradients {}",
                bytes(memory.total()),
                bytes(memory.parameters + memory.moments),
                memory.state_bytes_per_parameter,
                bytes(memory.gradients)
            ),
        ),
        (
            "",
            format!(
                "weights as products read them {}, batches {}, the result {}",
                bytes(memory.laid_out),
                bytes(memory.batch + memory.loader),
                bytes(memory.result)
            ),
        ),
        (
            "disk",
            format!(
                "{} a checkpoint, {} with the result",
                bytes(budget.checkpoint),
                bytes(budget.disk)
            ),
        ),
        ("sbatch", format!("--time={} --mem={}", answer.sbatch.time, answer.sbatch.mem)),
    ]
}

fn speed(answer: &Answer) -> String {
    let rate = thousands(answer.rate.tokens_per_second as u64);
    match answer.rate.source {
        Source::Given => format!("{rate} tokens/s, as given"),
        Source::Measured { threads, d_sae } if d_sae == answer.d_sae => {
            format!("{rate} tokens/s, measured here on {threads} threads")
        }
        Source::Measured { threads, d_sae } => format!(
            "{rate} tokens/s, measured here on {threads} threads with d_sae {} and scaled",
            thousands(d_sae as u64)
        ),
    }
}

/// Heads of the table of trainings.
pub(super) const HEADS: [&str; 8] =
    ["training", "d_sae", "k", "tokens", "lr", "FVU", "L0", "tokens/s"];

/// The trainings, in the order of sizes and rates.
pub(super) fn cells(forecast: &Forecast) -> Vec<[String; 8]> {
    let mut runs: Vec<_> = forecast.runs.iter().collect();
    let key = |s: &Sizes, lr: f64| [s.d_sae, s.k.unwrap_or(0.0), s.tokens, lr];
    runs.sort_by(|a, b| {
        key(&a.sizes, a.lr).partial_cmp(&key(&b.sizes, b.lr)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let row = |run: &&Finished| {
        [
            run.run_id.clone(),
            thousands(run.sizes.d_sae as u64),
            run.sizes.k.map_or_else(|| "-".to_owned(), tidy),
            thousands(run.sizes.tokens as u64),
            tidy(run.lr),
            tidy(run.fvu),
            tidy(run.l0),
            run.tokens_per_second.map_or_else(|| "-".to_owned(), |r| thousands(r as u64)),
        ]
    };
    runs.iter().map(row).collect()
}

fn runs(forecast: &Forecast) -> String {
    aligned(&HEADS.map(str::to_owned), &cells(forecast), |i| i == 0)
}

/// What the trainings say.
pub(super) fn findings(forecast: &Forecast) -> Vec<(&'static str, String)> {
    let mut rows = vec![];
    if let Some(fvu) = &forecast.fvu {
        rows.push(("FVU", format!("= {}", fvu.formula)));
        for (quantity, exponent) in &fvu.exponents {
            rows.push((
                "",
                format!("exponent of {} {}", quantity.name(), interval(exponent, decimal)),
            ));
        }
        rows.push(("", format!("expected {}", interval(&fvu.prediction, tidy))));
    }
    if let Some(law) = &forecast.best_lr {
        rows.push(("best LR", format!("= {}", law.formula)));
        rows.push(("", format!("expected {}", interval(&law.prediction, tidy))));
    }
    let from = match forecast.lr_from {
        LrFrom::Given => "as given",
        LrFrom::Law => "by the law of the best ones",
        LrFrom::NearestSize => "the best one of the nearest size, changed as the default changes",
        LrFrom::Default => "the default: no size has trainings with several",
    };
    rows.push(("LR", format!("{} ({from})", tidy(forecast.lr))));
    rows
}

fn decimal(value: f64) -> String {
    format!("{value:.3}")
}

fn interval(interval: &Interval, show: fn(f64) -> String) -> String {
    let range = match (interval.low, interval.high) {
        (Some(low), Some(high)) => format!("(95 % {} to {})", show(low), show(high)),
        _ => "(as many coefficients as trainings: no interval)".to_owned(),
    };
    format!("{} {range}", show(interval.value))
}
