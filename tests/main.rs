//! The integration tests, one module per concern.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod checkpoints;
mod cli;
mod convert;
mod curves;
mod dependencies;
mod discover;
mod evaluate;
mod explore;
mod faults;
mod golden;
mod hostile;
mod hub;
mod interop;
mod kill;
mod naming;
mod packages;
mod plan;
mod policy;
mod prepare;
mod presets;
mod remote;
mod report;
mod slurm;
mod status;
mod sweep;
mod train;
mod verify;
mod workload;
