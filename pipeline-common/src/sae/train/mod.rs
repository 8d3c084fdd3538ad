//! Stage 02: shards to a sparse autoencoder.
//!
//! `stage` resolves what to train on what, `record` is what the run says about itself, `loader`
//! hands out rows batch by batch, `session` makes the steps.

mod loader;
pub mod record;
mod session;
mod stage;

pub use record::TrainingMeta;
pub use stage::TrainSae;
