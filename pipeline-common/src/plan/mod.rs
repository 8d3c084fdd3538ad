//! What work will cost before it is queued: [`discover`] for a capture, [`training`] for an SAE.

pub mod discover;

pub use discover::DiscoverLayers;
