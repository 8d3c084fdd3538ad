//! An SAE from one format to another.

use std::process::ExitCode;

use pipeline_common::{sae::ConvertSae, stage};

fn main() -> ExitCode {
    stage::main::<ConvertSae>()
}
