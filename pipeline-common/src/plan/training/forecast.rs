//! What finished trainings say of a larger one.

use serde::Serialize;

use super::{
    laws::{Group, Interval, Optimum, Point, PowerLaw, Quantity, Sizes, Unfit, groups},
    runs::{self, Finished},
    subject::Planned,
};
use crate::{
    plot::tidy,
    sae::settings::{Architecture, optimiser::default_lr},
    stage::{Context, Failure, ResolvedConfig, Result},
};

/// Finished trainings, what they have in common, and what follows for the planned one.
#[derive(Debug, Serialize)]
pub(super) struct Forecast {
    /// All of them.
    pub runs: Vec<Finished>,
    /// Sizes and FVU of those with the best learning rate of their size: what the law of FVU is of.
    #[serde(skip)]
    pub best: Vec<(Sizes, f64)>,
    /// How large the planned one is.
    pub planned: Sizes,
    /// The law of FVU.
    pub fvu: Option<Extrapolation>,
    /// The best learning rate of each size of which several were tried.
    pub optima: Vec<Optimum>,
    /// The law of the best learning rate.
    pub best_lr: Option<Extrapolation>,
    /// The planned one's learning rate.
    pub lr: f64,
    /// Where it is from.
    pub lr_from: LrFrom,
    /// What a reader must know before believing this.
    pub notes: Vec<String>,
}

/// A law and its value at the planned size.
#[derive(Debug, Serialize)]
pub(super) struct Extrapolation {
    #[serde(skip)]
    pub law: PowerLaw,
    /// The law as people write it.
    pub formula: String,
    /// Its exponents.
    pub exponents: Vec<(Quantity, Interval)>,
    /// A further training's value, with the 95 % interval of a new observation.
    pub prediction: Interval,
}

/// Where a learning rate is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LrFrom {
    /// LR.
    Given,
    /// The law of the best ones.
    Law,
    /// The best one of the nearest size, changed as the default changes from that size.
    NearestSize,
    /// The default: only one rate was tried at each size.
    Default,
}

impl Forecast {
    /// Of two or more trainings of the same kind as the planned one.
    ///
    /// # Errors
    /// A usage failure for fewer or others.
    pub fn new(
        runs: Vec<Finished>,
        planned: &Planned,
        sizes: Sizes,
        context: &Context,
    ) -> Result<Self> {
        let (train, plan) = (&planned.args.train, &planned.plan);
        check_kind(&runs, planned, &context.config)?;
        let points: Vec<Point> = runs.iter().map(Finished::point).collect();
        let groups = groups(&points);
        let mut notes = vec![];
        let best = at_best_rates(&groups);
        let fvu =
            extrapolate(&best, &sizes).map_err(|unfit| notes.push(reason("FVU", &unfit))).ok();
        let optima: Vec<Optimum> = groups.iter().filter_map(Group::optimum).collect();
        // One at the edge says only that the best is not on this side of it.
        let rates: Vec<(Sizes, f64)> =
            optima.iter().filter(|o| !o.at_edge).map(|o| (o.sizes, o.lr)).collect();
        let best_lr = if rates.is_empty() { None } else { extrapolate(&rates, &sizes).ok() };
        let (lr, lr_from) = match (&best_lr, nearest(&optima, &sizes)) {
            _ if context.config.given("lr") => (plan.lr, LrFrom::Given),
            (Some(law), _) => (law.prediction.value, LrFrom::Law),
            (None, Some(optimum)) => (scaled(optimum, train.sae_arch, &sizes), LrFrom::NearestSize),
            (None, None) => (plan.lr, LrFrom::Default),
        };
        let once = groups.len() - optima.len();
        if once > 0 && !optima.is_empty() {
            notes.push(format!(
                "of {} sizes {once} have one learning rate alone: their FVU may not be the best they can have",
                groups.len()
            ));
        }
        notes.extend(warnings(&optima, &points, &sizes));
        let differing = runs::differing(&runs, &context.config.scientific());
        if !differing.is_empty() {
            notes.push(format!(
                "settings that differ too, which no law is in: {}",
                differing.join(", ")
            ));
        }
        Ok(Self { runs, best, planned: sizes, fvu, optima, best_lr, lr, lr_from, notes })
    }
}

/// Refuses trainings that say nothing of the planned one.
fn check_kind(runs: &[Finished], planned: &Planned, config: &ResolvedConfig) -> Result<()> {
    if runs.len() < 2 {
        let what = format!("FROM_RUNS names {} finished training, two are needed", runs.len());
        return Err(Failure::usage(what).hint("a pattern names several: FROM_RUNS='sweep-*'"));
    }
    let own = [
        ("SAE_ARCH", config.value("sae_arch").unwrap_or_default().to_owned()),
        ("d_in", planned.plan.shape.d_in.to_string()),
        ("hook", planned.hooks().unwrap_or_else(|| runs[0].hooks.clone())),
    ];
    for run in runs {
        let its = [run.architecture.clone(), run.d_in.to_string(), run.hooks.clone()];
        for ((name, expected), found) in own.iter().zip(its) {
            if *expected != found {
                let what = format!(
                    "training `{}` cannot tell of the planned one: its {name} is `{found}`, \
                     expected `{expected}`",
                    run.run_id
                );
                return Err(
                    Failure::usage(what).hint("leave it out of FROM_RUNS, or plan for its kind")
                );
            }
        }
    }
    Ok(())
}

/// Of each size the trainings with the learning rate that was best for it.
fn at_best_rates(groups: &[Group]) -> Vec<(Sizes, f64)> {
    groups.iter().flat_map(Group::at_best_rate).map(|p| (p.sizes, p.fvu)).collect()
}

fn extrapolate(
    points: &[(Sizes, f64)],
    sizes: &Sizes,
) -> std::result::Result<Extrapolation, Unfit> {
    let law = PowerLaw::new(points)?;
    let (formula, exponents) = (law.formula(), law.exponents());
    let prediction = law.prediction(sizes);
    Ok(Extrapolation { law, formula, exponents, prediction })
}

fn reason(of: &str, unfit: &Unfit) -> String {
    match unfit {
        Unfit::Equal => format!("no law of {of}: all trainings have the same d_sae, k and tokens"),
        Unfit::Undecided(names) => format!(
            "no law of {of}: the trainings do not tell the effects of {} apart; change one at a time",
            names.join(" and ")
        ),
    }
}

/// The optimum whose size is nearest to the planned one's, in logarithms.
fn nearest<'a>(optima: &'a [Optimum], sizes: &Sizes) -> Option<&'a Optimum> {
    let distance = |o: &&Optimum| o.sizes.distance(sizes);
    optima.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// An optimum's learning rate for another width, as the default one changes.
fn scaled(optimum: &Optimum, architecture: Architecture, sizes: &Sizes) -> f64 {
    let default = |d_sae: f64| default_lr(architecture, d_sae as usize);
    optimum.lr * default(sizes.d_sae) / default(optimum.sizes.d_sae)
}

/// Best rates at an end of those tried, and how far the planned size is from all trainings.
fn warnings(optima: &[Optimum], points: &[Point], planned: &Sizes) -> Vec<String> {
    let mut found: Vec<String> = vec![];
    for optimum in optima.iter().filter(|o| o.at_edge) {
        let lowest = optimum.tried.first().is_some_and(|(lr, _)| *lr == optimum.lr);
        let (end, beyond) = if lowest { ("lowest", "lower") } else { ("highest", "higher") };
        found.push(format!(
            "at {} the best learning rate is the {end} that was tried ({}): try {beyond} ones",
            optimum.sizes,
            tidy(optimum.lr)
        ));
    }
    for quantity in Quantity::ALL {
        let values = || points.iter().map(|point| point.sizes.of(quantity));
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        let at = planned.of(quantity);
        let times = (at / high).max(low / at);
        if low == high && times > 1.0 {
            found.push(format!(
                "all trainings have {} {}, the planned one has {}: its effect is not in the law",
                quantity.name(),
                tidy(low),
                tidy(at)
            ));
        } else if times > 1.0 {
            found.push(format!(
                "the planned {} is {}x beyond the trainings'",
                quantity.name(),
                tidy(times)
            ));
        }
    }
    found
}
