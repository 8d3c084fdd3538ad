//! The answer as a page with plots.

use askama::Template;

use super::{
    answer::Answer,
    forecast::{Extrapolation, Forecast},
    laws::{Quantity, Sizes},
    table::{HEADS, cells, costs, findings},
};
use crate::{
    plot::{Figure, Series, tidy},
    stage::{Result, progress::thousands},
};

/// Points of a law's line.
const POINTS: usize = 40;

#[derive(Template)]
#[template(path = "plan.html")]
struct Page<'a> {
    title: String,
    costs: Vec<(&'static str, String)>,
    findings: Vec<(&'static str, String)>,
    notes: &'a [String],
    head: [&'static str; 8],
    rows: Vec<[String; 8]>,
    figures: Vec<Figure>,
}

/// The page.
///
/// # Errors
/// None that is known of: text that cannot be written.
pub(super) fn render(answer: &Answer) -> Result<String> {
    let forecast = answer.forecast.as_ref();
    let page = Page {
        title: format!("{}, {} latents", answer.architecture, thousands(answer.d_sae as u64)),
        costs: costs(answer),
        findings: forecast.map(findings).unwrap_or_default(),
        notes: forecast.map_or(&[], |f| &f.notes),
        head: HEADS,
        rows: forecast.map(cells).unwrap_or_default(),
        figures: forecast.map(figures).unwrap_or_default(),
    };
    Ok(page.render().map_err(std::io::Error::other)?)
}

fn figures(forecast: &Forecast) -> Vec<Figure> {
    let mut figures = by_quantity("FVU", forecast.fvu.as_ref(), &forecast.best, &forecast.planned);
    let tried = forecast
        .optima
        .iter()
        .map(|optimum| Series::dots(optimum.sizes.to_string(), optimum.tried.iter().copied()));
    let tried: Vec<Series> = tried.collect();
    if !tried.is_empty() {
        figures.push(Figure::powers("FVU by learning rate", "learning rate", tried));
    }
    let best: Vec<(Sizes, f64)> = forecast.optima.iter().map(|o| (o.sizes, o.lr)).collect();
    figures.extend(by_quantity(
        "Best learning rate",
        forecast.best_lr.as_ref(),
        &best,
        &forecast.planned,
    ));
    figures
}

/// A figure for each quantity of a law: what was measured, and the law up to the planned size.
fn by_quantity(
    name: &str,
    law: Option<&Extrapolation>,
    measured: &[(Sizes, f64)],
    planned: &Sizes,
) -> Vec<Figure> {
    let Some(law) = law else { return vec![] };
    let figure = |quantity: &Quantity| {
        let mut series = vec![expected(law, measured, *quantity, planned)];
        series.extend(band(law, measured, *quantity, planned));
        series.extend(along(measured, *quantity));
        Figure::powers(&format!("{name} by {}", quantity.name()), quantity.name(), series)
    };
    law.law.over.iter().map(figure).collect()
}

/// The law where all but one quantity are the planned one's.
fn expected(
    law: &Extrapolation,
    measured: &[(Sizes, f64)],
    q: Quantity,
    planned: &Sizes,
) -> Series {
    let points = grid(measured, q, planned);
    Series::line("law, else as planned", points.map(|s| (s.of(q), law.law.at(&s))))
}

/// Both ends of its interval, where it has one.
fn band(
    law: &Extrapolation,
    measured: &[(Sizes, f64)],
    q: Quantity,
    planned: &Sizes,
) -> Vec<Series> {
    let end = |name: &str, of: fn(&super::laws::Interval) -> Option<f64>| {
        let points = grid(measured, q, planned);
        let at = |s: Sizes| Some((s.of(q), of(&law.law.prediction(&s))?));
        Series::line(name, points.filter_map(at))
    };
    vec![end("95 % from", |i| i.low), end("95 % to", |i| i.high)]
}

/// Sizes from the smallest measured to the planned one, evenly by logarithm.
fn grid(measured: &[(Sizes, f64)], q: Quantity, planned: &Sizes) -> impl Iterator<Item = Sizes> {
    let values = || measured.iter().map(|(s, _)| s.of(q)).chain([planned.of(q)]);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let planned = *planned;
    (0..=POINTS).map(move |i| {
        let value = low * (high / low).powf(i as f64 / POINTS as f64);
        planned.with(q, value)
    })
}

/// Measured values that differ in one quantity alone, a series for each value of the others.
fn along(measured: &[(Sizes, f64)], q: Quantity) -> Vec<Series> {
    let mut kinds: Vec<(Sizes, Vec<(f64, f64)>)> = vec![];
    for (sizes, value) in measured {
        let others = sizes.with(q, 1.0);
        match kinds.iter_mut().find(|(kind, _)| *kind == others) {
            Some((_, points)) => points.push((sizes.of(q), *value)),
            None => kinds.push((others, vec![(sizes.of(q), *value)])),
        }
    }
    let name = |others: &Sizes| {
        let rest = Quantity::ALL
            .into_iter()
            .filter(|r| *r != q && !(*r == Quantity::K && others.k.is_none()));
        let parts: Vec<String> =
            rest.map(|r| format!("{} {}", r.name(), tidy(others.of(r)))).collect();
        parts.join(", ")
    };
    let series = |(others, mut points): (Sizes, Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series::dots(name(&others), points.into_iter())
    };
    kinds.into_iter().map(series).collect()
}
