//! Which hooks a model has, and what reading them would cost.

use std::process::ExitCode;

use pipeline_common::{plan::DiscoverLayers, stage};

fn main() -> ExitCode {
    stage::main::<DiscoverLayers>()
}
