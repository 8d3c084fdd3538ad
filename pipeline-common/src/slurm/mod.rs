//! What SLURM says about this process: the typed environment, a worker's share, threads.
//!
//! Without SLURM everything is absent and the share is 0 of 1, so every stage runs on a laptop.

pub mod env;
pub mod threads;

pub use env::{Share, SlurmEnv, SlurmError};
