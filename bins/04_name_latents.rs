//! Stage 04: top sentences per latent -> named latents.

use std::process::ExitCode;

use pipeline_common::{naming::NameLatents, stage};

fn main() -> ExitCode {
    stage::main::<NameLatents>()
}
