//! Files whose values become clap's defaults: the YAML file and, below it, the run that a stage
//! goes on with.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, FromArgMatches};
use serde::Deserialize;

use super::{
    CommonArgs, Failure, ResolvedConfig, Result,
    config::SECRETS,
    store::{Pointer, Store},
};

/// Settings by YAML key, as clap would see them on the command line.
pub(super) type Values = Vec<(String, Vec<String>)>;

/// A file whose values became clap's defaults.
pub(super) struct Layer {
    pub path: PathBuf,
    keys: Vec<String>,
}

impl Layer {
    pub fn new(path: PathBuf, values: &[(String, Vec<String>)]) -> Self {
        Self { path, keys: values.iter().map(|(key, _)| key.clone()).collect() }
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|k| k == key)
    }
}

pub(super) fn with_defaults(command: Command, values: &[(String, Vec<String>)]) -> Command {
    values.iter().cloned().fold(command, |command, (key, values)| {
        let secret = SECRETS.contains(&key.as_str());
        command
            .mut_arg(key, |a| a.required(false).default_values(values).hide_default_value(secret))
    })
}

/// What can be told from the command line and the environment before all of it is checked.
fn early(command: &Command, argv: &[OsString]) -> Option<ArgMatches> {
    let command =
        command.clone().ignore_errors(true).disable_help_flag(true).disable_version_flag(true);
    command.try_get_matches_from(argv).ok()
}

pub(super) fn config_path(command: &Command, argv: &[OsString]) -> Option<PathBuf> {
    early(command, argv)?.get_one::<PathBuf>("config").cloned()
}

/// A file of the run that RUN_ID names, if the run has it.
pub(super) fn run_file(command: &Command, argv: &[OsString], name: &str) -> Option<PathBuf> {
    let common = CommonArgs::from_arg_matches(&early(command, argv)?).ok()?;
    let store = Store::new(common.store_root());
    let file = store.run_dir(common.run_id.as_deref()?, Pointer::Capture).ok()?.join(name);
    file.is_file().then_some(file)
}

/// The settings of a run that this stage has too.
pub(super) fn read_run(path: &Path, ids: &[String]) -> Result<Vec<(String, Vec<String>)>> {
    #[derive(Deserialize)]
    struct Run {
        config: ResolvedConfig,
    }
    let run: Run = serde_json::from_slice(&fs_err::read(path)?)
        .map_err(|e| Failure::input(format!("`{}`: {e}", path.display())))?;
    let values = run.config.0.into_iter().filter(|(key, _)| ids.contains(key));
    Ok(values.filter_map(|(key, setting)| Some((key, vec![setting.value?]))).collect())
}

/// clap names the flag of a bad value; the user may have written it elsewhere.
pub(super) fn blame_origin(
    mut error: clap::Error,
    argv: &[OsString],
    layers: &[Layer],
) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = arg.split([' ', '=', '[']).next().unwrap_or("");
    let key = flag.trim_start_matches('-').replace('-', "_");
    let on_command_line = argv
        .iter()
        .filter_map(|a| a.to_str())
        .any(|a| a.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')));
    let variable = key.to_uppercase();
    let place = if on_command_line {
        return error;
    } else if std::env::var_os(&variable).is_some_and(|v| !v.is_empty()) {
        format!("environment variable {variable}")
    } else if let Some(layer) = layers.iter().find(|layer| layer.has(&key)) {
        format!("key `{key}` of `{}`", layer.path.display())
    } else {
        return error;
    };
    let arg = format!("{arg} ({place})");
    error.insert(ContextKind::InvalidArg, ContextValue::String(arg));
    error
}
