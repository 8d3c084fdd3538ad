//! What every binary shares: from the command line to the exit code.
//!
//! A stage is a clap struct that implements [`Stage`]; a binary is one call of [`main()`].

pub mod ask;
pub mod atomic;
pub mod columns;
pub mod config;
pub mod context;
pub mod disk;
pub mod entries;
pub mod error;
pub mod heartbeat;
mod layers;
pub mod lock;
pub mod logging;
pub mod main;
pub mod memory;
pub mod meta;
pub mod progress;
pub mod signals;
pub mod store;
pub mod time;

pub use config::{CommonArgs, ResolvedConfig};
pub use context::Context;
pub use error::{Classify, Failure, Kind, Result};
pub use heartbeat::Reporter;
pub use main::{Stage, main};
pub use progress::Progress;
pub use signals::StopFlag;
