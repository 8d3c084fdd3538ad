//! Stage 02: shards to a sparse autoencoder.
//!
//! `stage` has the settings, of one SAE or of several; `job` is one of them, from its rows to its
//! files; `record` is what its run says about itself. `together` reads rows batch by batch through
//! `loader` and hands them to each `session`, which makes the steps. `compare` shows what came of
//! several; `budget` is what one costs, `probe` how long its steps take here.

pub mod budget;
mod compare;
mod job;
pub mod loader;
pub mod probe;
pub mod record;
mod session;
mod stage;
mod together;

pub use budget::Budget;
pub use job::{Job, Subject};
pub use record::TrainingMeta;
pub use stage::{SubjectArgs, TrainSae};
