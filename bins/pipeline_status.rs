//! All workers and stages of a run in one table.

use std::process::ExitCode;

use pipeline_common::{stage, status::PipelineStatus};

fn main() -> ExitCode {
    stage::main::<PipelineStatus>()
}
