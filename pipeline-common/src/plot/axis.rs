//! Where values lie on an axis, and where its ticks are.

/// How values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// In proportion.
    Linear,
    /// By their logarithm; all are above 0.
    Log,
}

/// Ticks that a linear axis has about.
const TICKS: f64 = 5.0;
/// From this ratio of the largest to the smallest value on a logarithm shows more.
const WIDE_RATIO: f64 = 20.0;

impl Scale {
    /// The logarithm for positive values of very different size.
    pub fn fitting(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = range(values);
        if low > 0.0 && high / low >= WIDE_RATIO { Self::Log } else { Self::Linear }
    }
}

/// One axis of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis that ends where the values do.
    pub fn tight(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let (low, high) = widened(range(values), scale);
        let mut ticks = ticks(low, high, scale);
        ticks.retain(|tick| (low..=high).contains(tick));
        Self { low, high, scale, ticks }
    }

    /// An axis that ends at the ticks around the values; at 0 where that is not far from them.
    pub fn rounded(values: impl Iterator<Item = f64>, scale: Scale) -> Self {
        let (low, high) = widened(range(values), scale);
        let near = scale == Scale::Linear && low > 0.0 && low < 0.5 * high;
        let low = if near { 0.0 } else { low };
        let ticks = ticks(low, high, scale);
        Self { low: ticks[0], high: ticks[ticks.len() - 1], scale, ticks }
    }

    /// Where a value is, from 0 at the axis' begin to 1 at its end.
    pub fn place(&self, value: f64) -> f64 {
        let at = |x: f64| if self.scale == Scale::Log { x.ln() } else { x };
        (at(value) - at(self.low)) / (at(self.high) - at(self.low))
    }

    /// Places and labels of the ticks.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        self.ticks.iter().map(|tick| (self.place(*tick), tidy(*tick))).collect()
    }
}

/// The smallest and the largest of the finite values; 0 to 0 where there are none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let wider = |(low, high): (f64, f64), x: f64| (low.min(x), high.max(x));
    let (low, high) =
        values.filter(|x| x.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), wider);
    if low > high { (0.0, 0.0) } else { (low, high) }
}

/// A range that is one value gets room around it; on a linear axis that includes 0.
fn widened((low, high): (f64, f64), scale: Scale) -> (f64, f64) {
    match scale {
        _ if low < high => (low, high),
        Scale::Log => (low / 2.0, high * 2.0),
        Scale::Linear if low == 0.0 => (0.0, 1.0),
        Scale::Linear => ((2.0 * low).min(0.0), (2.0 * high).max(0.0)),
    }
}

/// Round values from at most `low` to at least `high`, ascending, at least two.
fn ticks(low: f64, high: f64, scale: Scale) -> Vec<f64> {
    match scale {
        Scale::Linear => {
            let step = round_up((high - low) / TICKS);
            // Multiples of the step as quotients of integers where it is below 1: 0.3, not
            // 0.30000000000000004.
            let multiple =
                |i: i64| if step < 1.0 { i as f64 / (1.0 / step) } else { i as f64 * step };
            let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
            (first..=last.max(first + 1)).map(multiple).collect()
        }
        Scale::Log => {
            let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
            let wide = high / low > 1e3;
            let digits: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all: Vec<f64> = decades
                .flat_map(|decade| digits.iter().map(move |d| d * 10_f64.powi(decade)))
                .collect();
            let first = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
            let last = all.iter().position(|tick| *tick >= high).unwrap_or(all.len() - 1);
            all[first..=last].to_vec()
        }
    }
}

/// The next 1, 2 or 5 times a power of ten.
fn round_up(step: f64) -> f64 {
    let power = 10_f64.powi(step.log10().floor() as i32);
    [1.0, 2.0, 5.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|x| *x >= step)
        .unwrap_or(10.0 * power)
}

/// A number with about three digits: `0.25`, `1.5k`, `20M`, `2e-4`.
pub fn tidy(value: f64) -> String {
    let size = value.abs();
    let (divisor, suffix) = match size {
        s if s >= 1e12 || (s > 0.0 && s < 1e-3) => return scientific(value),
        s if s >= 1e9 => (1e9, "G"),
        s if s >= 1e6 => (1e6, "M"),
        s if s >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let scaled = value / divisor;
    // Three digits, counted from the first that is not 0.
    let power = if scaled == 0.0 { 0 } else { scaled.abs().log10().floor() as i32 };
    let decimals = (2 - power).max(0) as usize;
    format!("{}{suffix}", trimmed(&format!("{scaled:.decimals$}")))
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{}e{exponent}", trimmed(mantissa)),
        None => text,
    }
}

/// Without zeros behind the last digit.
fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let rounded = |values: &[f64], scale| Axis::rounded(values.iter().copied(), scale);
        let axis = rounded(&[0.13, 0.97], Scale::Linear);
        assert_eq!(labels(&axis), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert!((axis.place(0.5) - 0.5).abs() < 1e-12);
        let axis = rounded(&[0.03, 0.9], Scale::Log);
        assert_eq!(labels(&axis), ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(
            labels(&rounded(&[2e-5, 0.9], Scale::Log)),
            ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
        );
        assert_eq!(labels(&rounded(&[1.55, 1.75], Scale::Linear))[0], "1.55");
        assert_eq!(labels(&rounded(&[8.0], Scale::Linear)), ["0", "5", "10", "15", "20"]);
        assert_eq!(labels(&rounded(&[0.0, 3e-4], Scale::Linear)), ["0", "1e-4", "2e-4", "3e-4"]);
    }

    #[test]
    fn a_tight_axis_ends_with_its_values() {
        let axis = Axis::tight([1.0, 123_000.0].into_iter(), Scale::Linear);
        assert_eq!(labels(&axis), ["50k", "100k"]);
        assert_eq!((axis.place(1.0), axis.place(123_000.0)), (0.0, 1.0));
    }

    #[test]
    fn one_value_or_none_still_makes_an_axis() {
        for values in [vec![], vec![0.0], vec![7.0], vec![f64::NAN], vec![-3.0, f64::INFINITY]] {
            let axis = Axis::rounded(values.iter().copied(), Scale::Linear);
            assert!(axis.ticks().len() >= 2 && axis.ticks().iter().all(|(at, _)| at.is_finite()));
        }
        let axis = Axis::rounded([8.0].into_iter(), Scale::Log);
        assert!(axis.place(8.0) > 0.0 && axis.place(8.0) < 1.0);
    }

    #[test]
    fn a_logarithm_is_for_positive_values_far_apart() {
        let fitting = |values: [f64; 2]| Scale::fitting(values.into_iter());
        assert_eq!(fitting([0.01, 0.9]), Scale::Log);
        assert_eq!(fitting([0.1, 0.9]), Scale::Linear);
        assert_eq!(fitting([0.0, 0.9]), Scale::Linear);
        assert_eq!(fitting([-1.0, 100.0]), Scale::Linear);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (0.012_34, "0.0123"),
            (1.0, "1"),
            (8.25, "8.25"),
            (123.4, "123"),
            (4096.0, "4096"),
            (123_456.0, "123k"),
            (1_500_000.0, "1.5M"),
            (2e-4, "2e-4"),
            (-0.5, "-0.5"),
            (3e15, "3e15"),
        ] {
            assert_eq!(tidy(value), text);
        }
    }
}
