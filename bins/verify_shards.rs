//! A capture run checked against its records, and repaired.

use std::process::ExitCode;

use pipeline_common::{stage, verify::VerifyShards};

fn main() -> ExitCode {
    stage::main::<VerifyShards>()
}
