//! What work will cost before it is queued: [`discover`] for a capture, [`training`] for an SAE.

pub mod discover;
pub mod training;

pub use discover::DiscoverLayers;
pub use training::PlanRun;
