//! Scaling laws of finished trainings: `y = A · d_saeᵃ · kᵇ · tokensᶜ`, fitted by least squares of
//! logarithms.
//!
//! The form is that of Gao et al. 2024 (section 3.1: `L(n, k) = exp(α + β_k log k + β_n log n + …)`)
//! and Templeton et al. 2024 without a product of logarithms and without an irreducible loss, which a
//! handful of runs cannot tell from an exponent: far beyond the runs a law is too hopeful. Only
//! quantities that differ among the runs are in it.

use std::fmt;

use serde::Serialize;

use super::least_squares::{Collinear, Estimate, Fit};
use crate::plot::tidy;

/// What a law may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Number of latents.
    DSae,
    /// Active latents a row.
    K,
    /// Rows trained on.
    Tokens,
}

impl Quantity {
    /// In the order of a law's exponents.
    pub const ALL: [Self; 3] = [Self::DSae, Self::K, Self::Tokens];

    /// As in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::DSae => "d_sae",
            Self::K => "k",
            Self::Tokens => "tokens",
        }
    }
}

/// The size of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Number of latents.
    pub d_sae: f64,
    /// Active latents a row, where a setting decides them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<f64>,
    /// Rows trained on.
    pub tokens: f64,
}

impl Sizes {
    /// One of them; 1, the same for all, where there is none.
    pub fn of(&self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::DSae => self.d_sae,
            Quantity::K => self.k.unwrap_or(1.0),
            Quantity::Tokens => self.tokens,
        }
    }

    /// The same with another value of one of them.
    #[must_use]
    pub fn with(mut self, quantity: Quantity, value: f64) -> Self {
        match quantity {
            Quantity::DSae => self.d_sae = value,
            Quantity::K => self.k = Some(value),
            Quantity::Tokens => self.tokens = value,
        }
        self
    }

    /// How far apart two are: the root of the squared differences of logarithms.
    pub fn distance(&self, other: &Self) -> f64 {
        let apart = |q: &Quantity| (self.of(*q) / other.of(*q)).ln().powi(2);
        Quantity::ALL.iter().map(apart).sum::<f64>().sqrt()
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let k = self.k.map_or(String::new(), |k| format!(", k {}", tidy(k)));
        write!(f, "d_sae {}{k}, {} tokens", tidy(self.d_sae), tidy(self.tokens))
    }
}

/// A number above 0 and its 95 % interval; absent where there are no more runs than coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The best guess.
    pub value: f64,
    /// Its lower end.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
}

impl Interval {
    fn of(estimate: Estimate) -> Self {
        let Estimate { value, margin } = estimate;
        Self { value, low: margin.map(|m| value - m), high: margin.map(|m| value + m) }
    }

    fn exp(self) -> Self {
        let Self { value, low, high } = self;
        Self { value: value.exp(), low: low.map(f64::exp), high: high.map(f64::exp) }
    }
}

/// Why there is no law.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// All points have the same sizes.
    Equal,
    /// The points do not tell the exponents of these apart.
    Undecided(Vec<&'static str>),
}

/// A power law.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerLaw {
    /// What it is in.
    pub over: Vec<Quantity>,
    fit: Fit,
}

impl PowerLaw {
    /// The law of values above 0 at these sizes.
    ///
    /// # Errors
    /// [`Unfit`] where the points do not decide one.
    pub fn new(points: &[(Sizes, f64)]) -> Result<Self, Unfit> {
        let differs = |q: &Quantity| points.iter().any(|(s, _)| s.of(*q) != points[0].0.of(*q));
        let over: Vec<Quantity> = Quantity::ALL.into_iter().filter(differs).collect();
        if over.is_empty() {
            return Err(Unfit::Equal);
        }
        let x: Vec<Vec<f64>> = points.iter().map(|(sizes, _)| logarithms(&over, sizes)).collect();
        let y: Vec<f64> = points.iter().map(|(_, value)| value.ln()).collect();
        let names = || over.iter().map(|q| q.name()).collect();
        let fit = Fit::new(&x, &y).map_err(|Collinear(_)| Unfit::Undecided(names()))?;
        Ok(Self { over, fit })
    }

    /// The law's value.
    pub fn at(&self, sizes: &Sizes) -> f64 {
        self.fit.at(&logarithms(&self.over, sizes)).exp()
    }

    /// A further training's value.
    pub fn prediction(&self, sizes: &Sizes) -> Interval {
        Interval::of(self.fit.prediction(&logarithms(&self.over, sizes))).exp()
    }

    /// A.
    pub fn factor(&self) -> Interval {
        Interval::of(self.fit.combination(&self.unit(0))).exp()
    }

    /// The exponents, in the order of `over`.
    pub fn exponents(&self) -> Vec<(Quantity, Interval)> {
        let exponent = |(i, q): (usize, &Quantity)| {
            (*q, Interval::of(self.fit.combination(&self.unit(i + 1))))
        };
        self.over.iter().enumerate().map(exponent).collect()
    }

    /// As people write it.
    pub fn formula(&self) -> String {
        let power = |(q, e): &(Quantity, Interval)| format!(" · {}^{:.3}", q.name(), e.value);
        let powers: String = self.exponents().iter().map(power).collect();
        format!("{}{powers}", tidy(self.factor().value))
    }

    fn unit(&self, place: usize) -> Vec<f64> {
        (0..=self.over.len()).map(|i| if i == place { 1.0 } else { 0.0 }).collect()
    }
}

fn logarithms(over: &[Quantity], sizes: &Sizes) -> Vec<f64> {
    std::iter::once(1.0).chain(over.iter().map(|q| sizes.of(*q).ln())).collect()
}

/// One training, as laws see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its size.
    pub sizes: Sizes,
    /// Peak learning rate.
    pub lr: f64,
    /// What it came to: fraction of variance unexplained on held-out rows.
    pub fvu: f64,
}

/// The best learning rate of trainings of one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimum {
    /// Their size.
    pub sizes: Sizes,
    /// The learning rates tried, ascending, with the mean FVU (geometric) of each.
    pub tried: Vec<(f64, f64)>,
    /// The best.
    pub lr: f64,
    /// FVU there.
    pub fvu: f64,
    /// Whether it is the lowest or the highest that was tried: the best may lie beyond.
    pub at_edge: bool,
}

impl Optimum {
    /// The vertex of the parabola, in logarithms, through the best rate tried and its neighbours; the
    /// best rate tried where it has only one neighbour.
    fn new(sizes: Sizes, tried: Vec<(f64, f64)>) -> Self {
        let best = (0..tried.len()).min_by(|a, b| tried[*a].1.total_cmp(&tried[*b].1)).unwrap_or(0);
        let at_edge = best == 0 || best + 1 == tried.len();
        let (lr, fvu) = if at_edge { tried[best] } else { vertex(&tried[best - 1..=best + 1]) };
        Self { sizes, tried, lr, fvu, at_edge }
    }
}

/// The lowest point of the parabola through three points, of which the middle one is not above the
/// others; in logarithms.
fn vertex(points: &[(f64, f64)]) -> (f64, f64) {
    let [a, b, c] = [0, 1, 2].map(|i| (points[i].0.ln(), points[i].1.ln()));
    // Newton's divided differences.
    let slope = (b.1 - a.1) / (b.0 - a.0);
    let bend = ((c.1 - b.1) / (c.0 - b.0) - slope) / (c.0 - a.0);
    if bend <= 0.0 {
        // All three are equal.
        return points[1];
    }
    let x = 0.5 * (a.0 + b.0 - slope / bend);
    let y = a.1 + (x - a.0) * (slope + bend * (x - b.0));
    (x.exp(), y.exp())
}

/// Trainings of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    sizes: Sizes,
    points: Vec<Point>,
}

/// The trainings by size, in the order of the first of each.
pub fn groups(points: &[Point]) -> Vec<Group> {
    let mut groups: Vec<Group> = vec![];
    for point in points {
        match groups.iter_mut().find(|group| group.sizes == point.sizes) {
            Some(group) => group.points.push(*point),
            None => groups.push(Group { sizes: point.sizes, points: vec![*point] }),
        }
    }
    groups
}

impl Group {
    /// The best learning rate; none where only one was tried.
    pub fn optimum(&self) -> Option<Optimum> {
        let mut rates: Vec<f64> = self.points.iter().map(|p| p.lr).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        (rates.len() > 1).then(|| {
            let tried = rates.iter().map(|lr| (*lr, self.mean(*lr))).collect();
            Optimum::new(self.sizes, tried)
        })
    }

    /// The geometric mean of FVU at one learning rate.
    fn mean(&self, lr: f64) -> f64 {
        let logs: Vec<f64> =
            self.points.iter().filter(|p| p.lr == lr).map(|p| p.fvu.ln()).collect();
        (logs.iter().sum::<f64>() / logs.len() as f64).exp()
    }

    /// The trainings with the learning rate whose FVU is lowest.
    pub fn at_best_rate(&self) -> impl Iterator<Item = &Point> {
        let best = self.points.iter().min_by(|a, b| self.mean(a.lr).total_cmp(&self.mean(b.lr)));
        let lr = best.map_or(f64::NAN, |point| point.lr);
        self.points.iter().filter(move |point| point.lr == lr)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sae::random::{Normal, Purpose};

    fn sizes(d_sae: f64, k: f64, tokens: f64) -> Sizes {
        Sizes { d_sae, k: Some(k), tokens }
    }

    /// Every combination of four widths, three k and three lengths.
    fn grid() -> Vec<Sizes> {
        let widths = [512.0, 1024.0, 3000.0, 8192.0];
        let of_width = |d| [8.0, 16.0, 64.0].map(|k| [1e6, 3e6, 1e8].map(|t| sizes(d, k, t)));
        widths.into_iter().flat_map(of_width).flatten().collect()
    }

    fn near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-9
    }

    proptest! {
        #[test]
        fn planted_laws_come_back_exactly(
            a in -3.0..3.0_f64, d in -1.0..1.0_f64, k in -1.0..1.0_f64, t in -1.0..1.0_f64,
        ) {
            let truth = |s: &Sizes| {
                (a + d * s.d_sae.ln() + k * s.k.unwrap().ln() + t * s.tokens.ln()).exp()
            };
            let points: Vec<_> = grid().into_iter().map(|s| (s, truth(&s))).collect();
            let law = PowerLaw::new(&points).unwrap();
            for ((_, found), expected) in law.exponents().iter().zip([d, k, t]) {
                prop_assert!((found.value - expected).abs() < 1e-9, "{found:?} {expected}");
            }
            let far = sizes(65_536.0, 128.0, 1e9);
            prop_assert!(near(law.prediction(&far).value, truth(&far)));
            prop_assert!(near(law.prediction(&far).low.unwrap(), truth(&far)));
        }

        #[test]
        fn the_best_rate_of_a_parabola_comes_back(
            best in -9.0..-5.0_f64, bend in 0.01..2.0_f64, step in 0.2..2.0_f64, shift in -0.49..0.49_f64,
        ) {
            // Five rates around the best one, which lies nearest to the middle one.
            let point = |i: i32| {
                let lr = best + step * (f64::from(i) + shift);
                let fvu = (-1.0 + bend * (lr - best).powi(2)).exp();
                Point { sizes: sizes(512.0, 8.0, 1e6), lr: lr.exp(), fvu }
            };
            let points: Vec<Point> = (-2..=2).rev().map(point).collect();
            let found = groups(&points)[0].optimum().unwrap();
            prop_assert!(!found.at_edge);
            prop_assert!((found.lr.ln() - best).abs() < 1e-6, "{} {best}", found.lr.ln());
            prop_assert!((found.fvu.ln() + 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn predictions_hold_as_often_as_they_say() {
        let (mut random, mut noise) = (Normal::new(5, Purpose::Comparison), [0.0_f32; 37]);
        let truth =
            |s: &Sizes| 3.0 * s.d_sae.powf(-0.3) * s.tokens.powf(-0.05) * s.k.unwrap().powf(-0.2);
        let far = sizes(65_536.0, 128.0, 1e9);
        let held = (0..1000).filter(|_| {
            random.fill(&mut noise);
            let noisy = |(s, e): (Sizes, &f32)| (s, truth(&s) * (0.05 * f64::from(*e)).exp());
            let points: Vec<_> = grid().into_iter().zip(&noise).map(noisy).collect();
            let found = PowerLaw::new(&points).unwrap().prediction(&far);
            let new = truth(&far) * (0.05 * f64::from(noise[36])).exp();
            (found.low.unwrap()..=found.high.unwrap()).contains(&new)
        });
        let held = held.count();
        assert!((929..=971).contains(&held), "{held} of 1000, three standard deviations are 21");
    }

    #[test]
    fn only_what_differs_is_in_a_law() {
        let two = [(sizes(512.0, 8.0, 1e6), 0.5), (sizes(2048.0, 8.0, 1e6), 0.25)];
        let law = PowerLaw::new(&two).unwrap();
        assert_eq!(law.over, [Quantity::DSae]);
        assert!((law.exponents()[0].1.value + 0.5).abs() < 1e-12);
        let far = law.prediction(&sizes(8192.0, 8.0, 1e6));
        assert!(near(far.value, 0.125) && far.low.is_none() && far.high.is_none());
        let no_k = two.map(|(s, y)| (Sizes { k: None, ..s }, y));
        assert_eq!(PowerLaw::new(&no_k).unwrap().over, [Quantity::DSae]);
    }

    #[test]
    fn points_that_decide_nothing_make_no_law() {
        let one = (sizes(512.0, 8.0, 1e6), 0.5);
        assert_eq!(PowerLaw::new(&[one]), Err(Unfit::Equal));
        assert_eq!(PowerLaw::new(&[one, (one.0, 0.4)]), Err(Unfit::Equal));
        let together = [1.0, 2.0, 4.0].map(|n| (sizes(512.0 * n, 8.0 * n, 1e6), 0.5 / n));
        assert_eq!(PowerLaw::new(&together), Err(Unfit::Undecided(vec!["d_sae", "k"])));
        let few = [one, (sizes(1024.0, 16.0, 1e6), 0.4)];
        assert_eq!(PowerLaw::new(&few), Err(Unfit::Undecided(vec!["d_sae", "k"])));
    }

    #[test]
    fn a_best_rate_at_the_edge_is_the_one_tried() {
        let point = |lr: f64, fvu: f64| Point { sizes: sizes(512.0, 8.0, 1e6), lr, fvu };
        let best = |points: &[Point]| groups(points)[0].optimum();
        assert_eq!(best(&[point(1e-3, 0.5), point(1e-3, 0.4)]), None);
        let two = best(&[point(3e-3, 0.4), point(1e-3, 0.5)]).unwrap();
        assert_eq!((two.lr, two.fvu, two.at_edge), (3e-3, 0.4, true));
        let flat = best(&[point(1e-3, 0.5), point(2e-3, 0.4), point(4e-3, 0.4)]).unwrap();
        assert!(!flat.at_edge && (2e-3..4e-3).contains(&flat.lr));
        // Two seeds count as their mean.
        let seeds = [point(1e-3, 0.3), point(1e-3, 0.6), point(2e-3, 0.41), point(4e-3, 0.5)];
        let chosen: Vec<Point> = groups(&seeds)[0].at_best_rate().copied().collect();
        assert_eq!(chosen, [point(2e-3, 0.41)]);
    }
}
