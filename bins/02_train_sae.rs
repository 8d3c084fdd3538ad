//! Stage 02: activation shards -> sparse autoencoder.

use std::process::ExitCode;

use pipeline_common::{sae::TrainSae, stage};

fn main() -> ExitCode {
    stage::main::<TrainSae>()
}
