//! One pair of axes with what is drawn between them.

use std::fmt::Write;

use askama::Template;

use super::{
    axis::{Axis, Scale, tidy},
    thin::{Point, thinned},
};

/// Drawing area, in its own units.
const WIDE: f64 = 400.0;
const HIGH: f64 = 170.0;
/// Buckets of a line: more than one a unit cannot be seen.
const BUCKETS: usize = 300;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As one line.
    Line,
    /// As a line with a dot at each point, for a few points.
    Dots,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// How it is drawn.
    pub mark: Mark,
    points: Vec<Point>,
}

impl Series {
    /// A line through the points, thinned to what can be seen.
    pub fn line(name: impl Into<String>, points: impl Iterator<Item = Point>) -> Self {
        Self { name: name.into(), mark: Mark::Line, points: thinned(points, BUCKETS) }
    }

    /// As [`Self::line`], with dots.
    pub fn dots(name: impl Into<String>, points: impl Iterator<Item = Point>) -> Self {
        Self { mark: Mark::Dots, ..Self::line(name, points) }
    }

    /// The last value, for the legend.
    fn last(&self) -> String {
        self.points.last().map_or(String::new(), |(_, y)| tidy(*y))
    }
}

/// A plot: a title, a legend with the last values, and the drawing.
#[derive(Debug, Template)]
#[template(path = "figure.html")]
pub struct Figure {
    title: String,
    x_name: &'static str,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

impl Figure {
    /// A figure of the series that have points; the vertical axis is logarithmic where they are
    /// positive and far apart.
    pub fn new(title: &str, x_name: &'static str, series: Vec<Series>) -> Self {
        let heights = series.iter().flat_map(|s| s.points.iter().map(|(_, y)| *y));
        let scale = Scale::fitting(heights);
        Self::scaled(title, x_name, (Scale::Linear, scale), series)
    }

    /// As [`Self::new`], with a linear vertical axis.
    pub fn linear(title: &str, x_name: &'static str, series: Vec<Series>) -> Self {
        Self::scaled(title, x_name, (Scale::Linear, Scale::Linear), series)
    }

    /// As [`Self::new`], with logarithmic axes: power laws are straight lines. All values are above 0.
    pub fn powers(title: &str, x_name: &'static str, series: Vec<Series>) -> Self {
        Self::scaled(title, x_name, (Scale::Log, Scale::Log), series)
    }

    fn scaled(
        title: &str,
        x_name: &'static str,
        (x_scale, y_scale): (Scale, Scale),
        series: Vec<Series>,
    ) -> Self {
        let series: Vec<Series> = series.into_iter().filter(|s| !s.points.is_empty()).collect();
        let points = || series.iter().flat_map(|s| s.points.iter().copied());
        let x = Axis::tight(points().map(|(x, _)| x), x_scale);
        let y = Axis::rounded(points().map(|(_, y)| y), y_scale);
        Self { title: title.to_owned(), x_name, x, y, series }
    }

    /// Places and labels of the horizontal axis.
    fn x_ticks(&self) -> Vec<(String, String)> {
        self.x.ticks().into_iter().map(|(at, label)| (units(at * WIDE), label)).collect()
    }

    /// Places and labels of the vertical axis.
    fn y_ticks(&self) -> Vec<(String, String)> {
        self.y.ticks().into_iter().map(|(at, label)| (units((1.0 - at) * HIGH), label)).collect()
    }

    /// Where each point of a series is drawn.
    fn places(&self, series: &Series) -> Vec<(String, String)> {
        let place = |(x, y): &Point| {
            (units(self.x.place(*x) * WIDE), units((1.0 - self.y.place(*y)) * HIGH))
        };
        series.points.iter().map(place).collect()
    }

    /// The points of a series as a polyline has them.
    fn polyline(&self, series: &Series) -> String {
        self.places(series).into_iter().fold(String::new(), |mut out, (x, y)| {
            let blank = if out.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            write!(out, "{blank}{x},{y}").unwrap_or_default();
            out
        })
    }

    /// What a screen reader says.
    fn description(&self) -> String {
        let of = |s: &Series| format!("{} ends at {}", s.name, s.last());
        let all: Vec<String> = self.series.iter().map(of).collect();
        format!("{} by {}: {}", self.title, self.x_name, all.join(", "))
    }
}

/// A length in the drawing's units, exact to a tenth.
fn units(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_draws_its_series_and_says_their_last_values() {
        let train = Series::line("training", (0..=10).map(|i| (f64::from(i), f64::from(i) / 10.0)));
        let held_out = Series::dots("held out", [(5.0, 0.25), (10.0, 0.75)].into_iter());
        let empty = Series::line("nothing", std::iter::empty());
        let page = Figure::new("a < b", "steps", vec![train, held_out, empty]).to_string();
        assert!(page.contains("a &#60; b") && !page.contains("a < b"), "{page}");
        assert_eq!(page.matches("<polyline").count(), 2);
        assert_eq!(page.matches("<circle").count(), 2);
        assert!(page.contains("0,170 40,153") && page.contains("cx=\"400\" cy=\"42.5\""), "{page}");
        assert!(page.contains("held out ends at 0.75") && !page.contains("nothing"), "{page}");
    }

    #[test]
    fn a_figure_of_one_point_has_places() {
        let one = Figure::new("x", "steps", vec![Series::line("y", std::iter::once((1.0, 1.0)))]);
        assert!(!one.to_string().contains("NaN"));
    }
}
