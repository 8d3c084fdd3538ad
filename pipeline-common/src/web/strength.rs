//! How strongly to steer with a latent, from its own activations.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    answer::Answer,
    browse::{Library, Opened},
};
use crate::top::record::Histogram;

/// Shares of the active rows whose activations are told.
const SHARES: [f64; 6] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.99];
/// Steps of a histogram in an octave.
const STEPS: f64 = 4.0;
/// Lengths of a push where a latent's activations are not known, in norms of the hook's rows.
const PUSHES: [f64; 3] = [0.1, 0.25, 0.5];

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Suggestion {
    op: &'static str,
    value: f64,
    why: String,
}

/// What is known of a latent's strength.
pub(super) fn strength(library: &Library, opened: &Opened, latent: usize) -> Answer<Value> {
    let meta = &opened.meta;
    let capture = library.catalog.capture(&meta.capture_run_id)?;
    // Of a transcoder the rows that it writes to.
    let moved = meta.target_hook.as_ref().unwrap_or(&meta.hook);
    let hook = capture.as_ref().and_then(|c| c.hooks.iter().find(|hook| hook.name == *moved));
    let statistics = hook.and_then(|hook| hook.statistics);
    let scale = capture.as_ref().map_or(1.0, |c| f64::from(c.activation_scale));
    let rms = statistics.map(|s| s.rms_norm / scale);
    let norm = f64::from(library.weights(opened)?.norms()[latent]);
    let top = opened.top().ok();
    let record = top.map(|top| top.latent(latent)).transpose()?;
    let quantiles = record
        .as_ref()
        .map_or_else(Vec::new, |record| quantiles(&record.histogram, f64::from(record.max)));
    let max = record.as_ref().map(|record| f64::from(record.max));
    let suggestions = match (max, &quantiles[..]) {
        (Some(max), [_, ..]) if max > 0.0 => from_own(&quantiles, max),
        _ => from_rows(rms, norm),
    };
    let quantiles: Vec<Value> =
        quantiles.iter().map(|(q, value)| json!({"q": q, "value": value})).collect();
    Ok(json!({
        "sae": meta.run_id, "latent": latent, "max": max, "quantiles": quantiles,
        "decoder_norm": norm, "hook_rms_norm": rms, "suggestions": suggestions,
    }))
}

/// Activations below which these shares of the active rows lie.
fn quantiles(histogram: &Histogram, max: f64) -> Vec<(f64, f64)> {
    let total: u64 = histogram.counts.iter().sum();
    if total == 0 {
        return vec![];
    }
    let at = |q: f64| {
        let (wanted, mut below) = (q * total as f64, 0.0);
        for (n, count) in histogram.counts.iter().enumerate() {
            let count = *count as f64;
            if below + count >= wanted && count > 0.0 {
                let within = (wanted - below) / count;
                let octaves = (f64::from(histogram.first) + n as f64 + within) / STEPS;
                return (q, octaves.exp2().min(max));
            }
            below += count;
        }
        (q, max)
    };
    SHARES.into_iter().map(at).collect()
}

fn suggestion(op: &'static str, value: f64, why: &str) -> Suggestion {
    // Three digits are more than anybody can tell apart.
    let digits = 2 - value.abs().max(f64::MIN_POSITIVE).log10().floor() as i32;
    let power = 10.0_f64.powi(digits.clamp(-300, 300));
    Suggestion { op, value: (value * power).round() / power, why: why.to_owned() }
}

fn from_own(quantiles: &[(f64, f64)], max: f64) -> Vec<Suggestion> {
    let of = |wanted: f64| quantiles.iter().find(|(q, _)| *q == wanted).map_or(max, |(_, v)| *v);
    let mut suggestions = vec![
        suggestion("ablate", 0.0, "as if it never fired"),
        suggestion("clamp", of(0.5), "everywhere as strong as half of its activations are"),
        suggestion("clamp", of(0.9), "everywhere as strong as the strongest tenth of them are"),
        suggestion("clamp", max, "everywhere as strong as it was anywhere"),
        suggestion("clamp", 2.0 * max, "everywhere twice as strong as it ever was"),
    ];
    suggestions.dedup_by_key(|one| (one.op, one.value.to_bits()));
    suggestions
}

fn from_rows(rms: Option<f64>, norm: f64) -> Vec<Suggestion> {
    let Some(rms) = rms.filter(|rms| *rms > 0.0 && norm > 0.0) else { return vec![] };
    let push = |share: f64| {
        let why = format!("a push of {share} of the hook's usual norm");
        suggestion("add", share * rms / norm, &why)
    };
    PUSHES.into_iter().map(push).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_steps_and_below_the_largest() {
        let histogram = Histogram { first: 0, counts: vec![50, 0, 40, 10] };
        let found = quantiles(&histogram, 1.8);
        let of = |wanted: f64| found.iter().find(|(q, _)| *q == wanted).unwrap().1;
        assert!((of(0.25) - 2.0_f64.powf(0.125)).abs() < 1e-12);
        assert!((of(0.5) - 2.0_f64.powf(0.25)).abs() < 1e-12);
        assert!((of(0.9) - 2.0_f64.powf(0.75)).abs() < 1e-12);
        assert_eq!(of(0.99), 1.8);
        assert_eq!(quantiles(&Histogram::default(), 0.0), []);
    }

    #[test]
    fn suggestions_grow_and_have_three_digits() {
        let found = from_own(&[(0.5, 1.23456), (0.9, 5.0)], 9.87654);
        assert_eq!(found.iter().map(|s| s.value).collect::<Vec<_>>(), [0.0, 1.23, 5.0, 9.88, 19.8]);
        let close = from_own(&[(0.5, 1.0), (0.9, 1.999)], 2.001);
        assert_eq!(close.iter().map(|s| s.value).collect::<Vec<_>>(), [0.0, 1.0, 2.0, 4.0]);
        let found = from_rows(Some(100.0), 2.0);
        assert_eq!(found.iter().map(|s| s.value).collect::<Vec<_>>(), [5.0, 12.5, 25.0]);
        assert_eq!(from_rows(None, 1.0), []);
        assert_eq!(from_rows(Some(1.0), 0.0), []);
    }
}
