//! Small plots as SVG, for pages that open from disk without a network.
//!
//! A [`Figure`] is one pair of axes with its lines and dots and renders to a `<figure>` element;
//! `templates/figure.css` gives it its colours, light and dark.

pub mod axis;
pub mod figure;
pub mod thin;

pub use axis::{Axis, Scale, tidy};
pub use figure::{Figure, Mark, Series};
