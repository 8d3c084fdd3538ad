//! Stage 01: documents to activation shards.

pub mod meta;

pub use meta::CaptureMeta;
