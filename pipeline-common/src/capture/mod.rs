//! Stage 01: documents to activation shards.
//!
//! `stage` resolves what to capture, `check` says what it will cost and `verify_model` whether the
//! model is sound, `policy` chooses which tokens get rows, `flow` moves batches through three threads (tokenise,
//! forward, write), `worker` owns one stream's shards and where to go on, `meta` is what the run
//! says about itself.

mod args;
mod check;
mod flow;
pub mod meta;
pub mod policy;
mod stage;
mod verify_model;
pub(crate) mod worker;

pub use meta::CaptureMeta;
pub use stage::SaveActivations;
pub(crate) use stage::run_lock;
