//! Stage 01: documents to activation shards.
//!
//! `stage` resolves what to capture, `check` says what it will cost and `verify_model` whether the
//! model is sound, `policy` chooses which tokens get rows, `flow` moves batches through three threads (tokenise,
//! forward, write), `worker` owns one stream's shards and where to go on, `run` is what all workers
//! agree on and who completes it, `meta` is what the run says about itself,
//! `model` finds its model again.

mod args;
mod check;
mod flow;
pub mod meta;
pub mod model;
pub mod policy;
mod run;
mod stage;
mod verify_model;
pub(crate) mod worker;

pub use args::Precision;
pub use meta::CaptureMeta;
pub use model::{CapturedModel, CapturedModelArgs};
pub(crate) use run::run_lock;
pub use stage::SaveActivations;
