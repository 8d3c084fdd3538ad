//! Stage 01: text -> activation shards.

use std::process::ExitCode;

use pipeline_common::{capture::SaveActivations, stage};

fn main() -> ExitCode {
    stage::main::<SaveActivations>()
}
