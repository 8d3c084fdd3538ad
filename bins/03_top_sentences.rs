//! Stage 03: sparse autoencoder and shards -> top sentences per latent.

use std::process::ExitCode;

use pipeline_common::{stage, top::TopSentences};

fn main() -> ExitCode {
    stage::main::<TopSentences>()
}
