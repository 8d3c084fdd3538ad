//! Stage 00: model and text to the local cache, documents to streams, and the tokenisation report.

use std::process::ExitCode;

use pipeline_common::{prepare::PrepareData, stage};

fn main() -> ExitCode {
    stage::main::<PrepareData>()
}
