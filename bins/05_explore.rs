//! Stage 05: browse latents, see them in a text, steer with them.

use std::process::ExitCode;

use pipeline_common::{stage, web::Explore};

fn main() -> ExitCode {
    stage::main::<Explore>()
}
