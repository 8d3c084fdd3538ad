//! What work will cost before it is queued: [`discover`] for a capture, [`training`] for an SAE.

pub mod discover;
pub mod training;

pub use discover::DiscoverLayers;
pub use training::PlanRun;

/// A time as people say it.
fn hours(hours: f64) -> String {
    if hours < 1.0 { format!("{:.1} min", hours * 60.0) } else { format!("{hours:.1} h") }
}
