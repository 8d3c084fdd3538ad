//! The integration tests, one module per concern.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod dependencies;
mod slurm;
mod hub;
