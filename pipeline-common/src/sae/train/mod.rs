//! Stage 02: shards to a sparse autoencoder.
//!
//! `stage` has the settings, of one SAE or of several; `job` is one of them, from its rows to its
//! files; `record` is what its run says about itself. `together` reads rows batch by batch through
//! `loader` and hands them to each `session`, which makes the steps. `compare` shows what came of
//! several.

mod compare;
mod job;
mod loader;
pub mod record;
mod session;
mod stage;
mod together;

pub use record::TrainingMeta;
pub use stage::TrainSae;
