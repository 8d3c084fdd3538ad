//! From the command line to the exit code, the same for every binary.

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};

use super::{
    CommonArgs, Context, Failure, Result, StopFlag,
    config::{self, ConfigError},
    logging, memory,
};
use crate::slurm::{SlurmEnv, threads};

/// One executable of the pipeline: its arguments and what it does with them.
pub trait Stage: CommandFactory + FromArgMatches {
    /// The stage's section in a YAML file.
    const SECTION: &'static str;

    /// Another stage's section, whose settings this stage takes too; its own section is above it.
    const BORROWED: Option<&'static str> = None;

    /// A file of the run that RUN_ID names, whose `config` holds defaults for this stage.
    const RUN_DEFAULTS: Option<&'static str> = None;

    /// The options every stage has.
    fn common(&self) -> &CommonArgs;

    /// Does the work.
    ///
    /// # Errors
    /// Anything that stops it, with kind and hint.
    fn run(&self, context: &Context) -> Result<()>;

    /// `--check`: opens the inputs, estimates disk, memory and time, prints them, writes nothing.
    ///
    /// # Errors
    /// Whatever would stop the run before its first result.
    fn check(&self, context: &Context) -> Result<()>;
}

/// Runs a stage: configuration, logging, signals, work, one error message, exit code.
pub fn main<S: Stage>() -> ExitCode {
    threads::apply();
    memory::keep_freed();
    match start::<S>() {
        Ok(()) => ExitCode::SUCCESS,
        Err(ConfigError::Clap(error)) => {
            let _closed_pipe = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        Err(ConfigError::Failure(failure)) => {
            report(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn start<S: Stage>() -> std::result::Result<(), ConfigError> {
    let stop = StopFlag::install().map_err(Failure::from)?;
    let argv: Vec<OsString> = std::env::args_os().collect();
    let (stage, config) = config::load::<S>(argv)?;
    let common = stage.common();
    logging::init(common.log_level, common.log_json.as_deref())?;
    config::check_variables(std::env::vars_os())?;
    let slurm = SlurmEnv::read().map_err(Failure::from)?;
    let context = Context { stop, config, slurm, threads: threads::count() };
    if common.print_config {
        context.print(&context.config.table());
    } else if common.check {
        stage.check(&context)?;
    } else {
        stage.run(&context)?;
    }
    Ok(())
}

/// Prints the chain once, one cause per line, then the hint.
fn report(failure: &Failure) {
    let mut text = format!("error: {}\n", failure.source);
    for cause in failure.source.chain().skip(1) {
        text += &format!("  caused by: {cause}\n");
    }
    if let Some(hint) = &failure.hint {
        text += &format!("hint: {hint}\n");
    }
    tracing::error!(target: logging::FILE_ONLY, "{text}");
    let _closed_pipe = std::io::stderr().write_all(text.as_bytes());
}
