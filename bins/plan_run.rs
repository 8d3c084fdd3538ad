//! What a training costs, and what finished ones say of it.

use std::process::ExitCode;

use pipeline_common::{plan::PlanRun, stage};

fn main() -> ExitCode {
    stage::main::<PlanRun>()
}
