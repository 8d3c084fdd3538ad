//! Activation shards on disk.
//!
//! A shard is a valid safetensors file whose header fills whole 4096-byte pages, so that the
//! payload is page-aligned for `memmap2` and any safetensors reader opens it:
//!
//! * `<hook>/shard-<worker>-<n>.safetensors`: `activations` F16 `[rows, d_in]`, then
//!   the rows' `sum` F64 `[d_in]`
//! * `tokens/shard-<worker>-<n>.safetensors`: see [`tokens`]
//!
//! A line in the [`manifest`] is what commits a shard; nothing uncommitted is ever read.

pub mod error;
pub mod format;
pub mod manifest;
pub mod order;
pub mod reader;
pub mod stats;
pub mod tokens;
pub mod writer;

pub use error::ShardError;
pub use manifest::{Committed, Dropped, HookFile, ShardFile};
pub use order::Order;
pub use reader::{Shard, ShardSet};
pub use stats::Stats;
pub use tokens::{TokenFile, Tokens};
pub use writer::ActivationWriter;
