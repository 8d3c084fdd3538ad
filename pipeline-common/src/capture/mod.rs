//! Stage 01: documents to activation shards.
//!
//! `stage` resolves what to capture, `flow` moves batches through three threads (tokenise,
//! forward, write), `worker` owns one stream's shards and where to go on, `meta` is what the run
//! says about itself.

mod flow;
pub mod meta;
mod stage;
mod worker;

pub use meta::CaptureMeta;
pub use stage::SaveActivations;
