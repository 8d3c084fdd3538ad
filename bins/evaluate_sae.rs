//! What an SAE is worth on held-out documents.

use std::process::ExitCode;

use pipeline_common::{sae::EvaluateSae, stage};

fn main() -> ExitCode {
    stage::main::<EvaluateSae>()
}
