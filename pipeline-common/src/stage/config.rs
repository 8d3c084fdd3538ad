//! Configuration: command line > environment > YAML > default, each value with its origin.
//!
//! A stage's clap struct is the only schema. Values of the YAML file become clap defaults, so one
//! parser checks them all; so do, below them, the settings of the run that the stage goes on with.
//! Flag, variable and YAML key are one name in three spellings: `--top-k`, `TOP_K`, `top_k`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args, Command, builder::BoolishValueParser, parser::ValueSource};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use super::{
    Failure, Result, Stage,
    layers::{Layer, Values, blame_origin, config_path, read_run, run_file, with_defaults},
    store::node_scratch,
};

/// Every environment variable of any stage. Exact names are never reported as misspellings, and
/// the `common` section of a YAML file may hold any of them.
pub const VARIABLES: &[&str] = &[
    "ACCUMULATE",
    "ACTIVATION_SCALE",
    "ADAM_BETA1",
    "ADAM_BETA2",
    "ADAM_EPS",
    "ANSWER_TOKENS",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "AUX_COEFFICIENT",
    "AUX_FORM",
    "BACKEND",
    "BANDWIDTH",
    "BATCH_SIZE_SAVE",
    "BATCH_SIZE_TRAIN",
    "BY_DECODER_NORM",
    "CHECK",
    "CHECKPOINT_EVERY",
    "CLIP",
    "COMPARE",
    "CONCURRENCY",
    "CONFIG",
    "DATA_LIMIT",
    "DATA_REVISION",
    "DATA_SEED",
    "DATA_SPLIT",
    "DEAD_AFTER",
    "DEVICE",
    "DROP_FIRST",
    "DROP_NORM_ABOVE",
    "DRY_RUN",
    "DTYPE",
    "D_IN",
    "D_SAE",
    "EPOCHS",
    "EXPLORE_PORT",
    "EXPLORE_QUEUE",
    "EXPORT_TOKENS",
    "F16_OVERFLOW",
    "FAST",
    "FORGET_BATCHES",
    "FROM_RUNS",
    "GATED_FORM",
    "HF_DATASET",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HOOK",
    "INIT_THRESHOLD",
    "INPUT_NORM",
    "JSON",
    "KEEP_BOS",
    "KEEP_CHECKPOINTS",
    "KEEP_SPECIAL",
    "K_ANNEAL",
    "K_AUX",
    "K_START",
    "L0_LAMBDA",
    "L0_MODE",
    "L1_BY_NORM",
    "L1_LAMBDA",
    "LATENTS",
    "LAYERS",
    "LAYER_NUM",
    "LISTEN",
    "LOG_EVERY",
    "LOG_JSON",
    "LOG_LEVEL",
    "LR",
    "LR_DECAY",
    "LR_END",
    "LR_FACTORS",
    "LR_SCHEDULE",
    "MAX_COST",
    "MAX_LENGTH",
    "MODEL_ID",
    "NAMING_ACTION",
    "NAMING_MODEL",
    "NO_AUTH",
    "N_LATENTS_MULTIPLIER",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OUTPUT",
    "PRECISION",
    "PREFIXES",
    "PRICE_INPUT",
    "PRICE_OUTPUT",
    "PRINT_CONFIG",
    "PROBE_SECONDS",
    "PROMPT_TEMPLATE",
    "P_END",
    "P_START",
    "REPAIR",
    "REPORT_SAMPLE",
    "REQUESTS_PER_BATCH",
    "REQUEST_TIMEOUT",
    "RESAMPLE_EVERY",
    "RETRIES",
    "RETRY_FAILED",
    "REVISION",
    "ROWS",
    "RUN_ID",
    "SAE_ARCH",
    "SAE_FORMAT",
    "SAE_FROM",
    "SAE_FROM_FORMAT",
    "SAE_PATH",
    "SAE_RUN_ID",
    "SAE_TO",
    "SCORES",
    "SEED",
    "SETTLE_SECONDS",
    "SHARD_MIB",
    "SKIP",
    "SPARSITY_WARMUP",
    "SPLIT",
    "STAGING",
    "STALL_AFTER",
    "STORE_DIR",
    "STRUCTURED",
    "SUBTRACT_B_DEC",
    "SWEEP",
    "SWEEP_TASK",
    "TANH_SCALE",
    "TARGET_HOOK",
    "TARGET_L0",
    "TEXT_FIELD",
    "THRESHOLD_DECAY",
    "THRESHOLD_START",
    "TIME_LIMIT",
    "TOKENS",
    "TOKENS_PER_SECOND",
    "TOP_K",
    "TOP_N",
    "TUNNEL_HOST",
    "UNIT_DECODER",
    "UPLOAD_KEEP",
    "UPLOAD_TO",
    "VALIDATE_EVERY",
    "VALIDATION",
    "VERIFY_MODEL",
    "WAIT_SECONDS",
    "WARMUP",
    "WATCH",
    "WEIGHT_EMA",
    "WINDOW",
    "WITH_MODEL",
    "WORKER",
    "WORKERS",
];

/// Sections a YAML file may have besides `common`.
const SECTIONS: &[&str] = &[
    "common",
    "prepare_data",
    "save_activations",
    "train_sae",
    "top_sentences",
    "name_latents",
    "explore",
    "discover_layers",
    "pipeline_status",
    "verify_shards",
    "convert_sae",
    "evaluate_sae",
    "plan_run",
];

/// Variables whose value is never printed or stored.
pub(super) const SECRETS: &[&str] =
    &["anthropic_api_key", "anthropic_base_url", "hf_token", "openai_api_key", "openai_base_url"];

/// Settings that change how a stage runs, not what it computes; a resume may change them.
pub(super) const OPERATIONAL: &[&str] = &[
    "check",
    "checkpoint_every",
    "compare",
    "config",
    "d_in",
    "device",
    "explore_port",
    "explore_queue",
    "fast",
    "from_runs",
    "hf_endpoint",
    "hf_home",
    "hf_hub_offline",
    "hf_token",
    "json",
    "keep_checkpoints",
    "listen",
    "log_every",
    "log_json",
    "log_level",
    "no_auth",
    "output",
    "print_config",
    "probe_seconds",
    "repair",
    "run_id",
    "sae_run_id",
    "stall_after",
    "staging",
    "store_dir",
    "sweep",
    "sweep_task",
    "time_limit",
    "tokens_per_second",
    "upload_keep",
    "upload_to",
    "verify_model",
    "watch",
    "worker",
];

/// Options every stage has.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Run")]
pub struct CommonArgs {
    /// Directory that holds all runs, or s3://BUCKET/PREFIX, gs://, az://
    /// [default: $SCRATCH/store where SCRATCH is set, else ./store]
    #[arg(long, env, value_name = "DIR")]
    pub store_dir: Option<PathBuf>,
    /// Run to work on; wins over run_id.txt
    #[arg(long, env, value_name = "NAME")]
    pub run_id: Option<String>,
    /// Where to compute: auto, cpu, cuda, cuda:N
    #[arg(long, env, default_value = "auto")]
    pub device: String,
    /// YAML file with a `common` section and one per stage
    #[arg(long, env, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print every setting with its origin and exit
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub print_config: bool,
    /// Resolve, open the inputs, estimate disk, memory and time, and exit
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub check: bool,
    /// How much to report: error, warn, info, debug, trace
    #[arg(long, env, default_value = "info", value_name = "LEVEL")]
    pub log_level: tracing::level_filters::LevelFilter,
    /// Also append every message to this file as JSON lines
    #[arg(long, env, value_name = "FILE")]
    pub log_json: Option<PathBuf>,
}

impl CommonArgs {
    /// STORE_DIR where it is a URL.
    pub fn store_url(&self) -> Option<&str> {
        self.store_dir.as_deref()?.to_str().filter(|text| text.contains("://"))
    }

    /// The store's directory: given, or under `$SCRATCH`, or `./store`; of a remote store the
    /// working copy on this node.
    pub fn store_root(&self) -> PathBuf {
        if let Some(url) = self.store_url() {
            // Runs of one name in two stores are two runs.
            let digest = blake3::hash(url.trim_end_matches('/').as_bytes()).to_hex();
            return node_scratch().join(format!("store-{}", &digest[..8]));
        }
        let scratch = || std::env::var_os("SCRATCH").filter(|s| !s.is_empty()).map(PathBuf::from);
        self.store_dir
            .clone()
            .unwrap_or_else(|| scratch().unwrap_or_else(|| PathBuf::from(".")).join("store"))
    }
}

/// One setting as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The value as text; lists are joined with a space; absent means unset.
    pub value: Option<String>,
    /// `command line`, `environment`, the YAML file's path, or `default`.
    pub origin: String,
}

/// All settings of a stage with their origins, by YAML key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResolvedConfig(pub BTreeMap<String, Setting>);

impl ResolvedConfig {
    /// The settings that decide the result: what a run stores and a resume must repeat.
    #[must_use]
    pub fn scientific(&self) -> Self {
        let keep = |key: &str| !OPERATIONAL.contains(&key);
        Self(self.0.iter().filter(|(k, _)| keep(k)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    /// Whether the user set `key` anywhere.
    pub fn given(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|setting| setting.origin != "default")
    }

    /// The value of `key`, if it has one.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.value.as_deref()
    }

    /// The values alone, without origins: equal for equal results.
    pub fn values(&self) -> BTreeMap<&str, Option<&str>> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.value.as_deref())).collect()
    }

    /// Refuses to go on with a run that was begun with other values than these; `stored` holds those
    /// that must be repeated, `variable` is what names the run.
    ///
    /// # Errors
    /// A usage failure that names each differing setting, what the run has and what was given.
    pub fn must_match(&self, stored: &Self, run: &str, variable: &str) -> Result<()> {
        let differing: Vec<String> = stored
            .0
            .iter()
            .filter_map(|(key, before)| {
                let now = self.0.get(key)?;
                let show = |v: &Option<String>| v.clone().unwrap_or_else(|| "unset".into());
                (before.value != now.value).then(|| {
                    format!(
                        "{}: run has `{}`, now `{}`",
                        key.to_uppercase(),
                        show(&before.value),
                        show(&now.value)
                    )
                })
            })
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "run `{run}` was begun with other settings: {}",
            differing.join("; ")
        ))
        .hint(format!("repeat the run's settings, or give {variable} a new name")))
    }

    /// An aligned table of every setting, its value and its origin.
    pub fn table(&self) -> String {
        let width = self.0.keys().map(String::len).max().unwrap_or(0);
        let shown = |s: &Setting| s.value.clone().unwrap_or_else(|| "-".into());
        let value_width = self.0.values().map(|s| shown(s).len()).max().unwrap_or(0).min(60);
        let mut out = String::new();
        for (key, setting) in &self.0 {
            let key = key.to_uppercase();
            out += &format!("{key:width$}  {:value_width$}  {}\n", shown(setting), setting.origin);
        }
        out
    }
}

/// Why configuration stopped: clap's own message (help, version, usage) or a failure of ours.
#[derive(Debug)]
pub enum ConfigError {
    /// Help, version, or a usage error with clap's rendering.
    Clap(Box<clap::Error>),
    /// Unknown keys, misspelt variables, an unreadable YAML file.
    Failure(Failure),
}

impl From<Failure> for ConfigError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Resolves a stage's configuration from `argv`, the environment and the YAML file.
///
/// # Errors
/// Usage errors of clap; unknown YAML keys.
pub fn load<S: Stage>(
    argv: Vec<OsString>,
) -> std::result::Result<(S, ResolvedConfig), ConfigError> {
    load_below(argv, None)
}

/// As [`load`], with values of a file's part above those of the YAML file.
pub(super) fn load_below<S: Stage>(
    argv: Vec<OsString>,
    top: Option<(&Path, &Values)>,
) -> std::result::Result<(S, ResolvedConfig), ConfigError> {
    let argv = dashes(argv);
    let clap_error = |e: clap::Error| ConfigError::Clap(Box::new(e));
    let mut command = forget_empty_variables(S::command());
    let ids: Vec<String> = command.get_arguments().map(|a| a.get_id().to_string()).collect();
    let mut layers = Vec::new();
    if let Some(path) = config_path(&command, &argv) {
        let values = read_sections(&path, (S::BORROWED, S::SECTION), &ids)?;
        command = with_defaults(command, &values);
        layers.push(Layer::new(path, &values));
    }
    if let Some(name) = S::RUN_DEFAULTS
        && let Some(path) = run_file(&command, &argv, name)
    {
        let mut values = read_run(&path, &ids)?;
        values.retain(|(key, _)| !layers.iter().any(|layer| layer.has(key)));
        command = with_defaults(command, &values);
        // The name alone: origins are stored, and a run does not depend on where its store is.
        layers.push(Layer::new(name.into(), &values));
    }
    if let Some((path, values)) = top {
        command = with_defaults(command, values);
        layers.insert(0, Layer::new(path.to_owned(), values));
    }
    let blame = |e: clap::Error| clap_error(blame_origin(e, &argv, &layers));
    let matches = command.clone().try_get_matches_from(&argv).map_err(blame)?;
    let config = origins(&matches, &command, &layers);
    let stage = S::from_arg_matches(&matches).map_err(|e| clap_error(e.format(&mut command)))?;
    Ok((stage, config))
}

/// `--run_id` and `--run-id` are the same flag.
fn dashes(argv: Vec<OsString>) -> Vec<OsString> {
    let dash = |arg: OsString| match arg.to_str() {
        Some(text) if text.starts_with("--") => match text.split_once('=') {
            Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
            None => text.replace('_', "-").into(),
        },
        _ => arg,
    };
    argv.into_iter().map(dash).collect()
}

/// SLURM scripts export empty variables; clap would take them as values.
fn forget_empty_variables(command: Command) -> Command {
    let empty: Vec<_> = command
        .get_arguments()
        .filter(|a| {
            a.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()))
        })
        .map(|a| a.get_id().clone())
        .collect();
    empty
        .into_iter()
        .fold(command, |c, id| c.mut_arg(id, |a| a.env(clap::builder::Resettable::Reset)))
}

/// Reports variables that look like a misspelt one: one letter off is an error, since a job that
/// ignores `TOPK` trains the wrong thing for hours; two letters off may be somebody else's
/// variable, so it is a warning.
///
/// # Errors
/// A usage failure that names the variable and the one that is meant.
pub fn check_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<()> {
    for name in variables.filter_map(|(name, _)| name.into_string().ok()) {
        let Some((known, distance)) = nearest(&name, VARIABLES) else { continue };
        if VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let said = format!("environment variable `{name}` is not known; did you mean `{known}`?");
        if distance == 1 {
            return Err(Failure::usage(said).hint(format!("rename it, or `unset {name}`")));
        }
        tracing::warn!("{said} It is ignored.");
    }
    Ok(())
}

/// The known name nearest to `name` within one or two edits; short names allow fewer.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<(&'a str, usize)> {
    let allowed = match name.len() {
        0..4 => 0,
        4..7 => 1,
        _ => 2,
    };
    known
        .iter()
        .map(|k| (*k, strsim::damerau_levenshtein(name, k)))
        .min_by_key(|(_, d)| *d)
        .filter(|(_, d)| *d <= allowed)
}

/// The settings of a stage with these `ids`, in `common`, in the section it borrows and in its own.
fn read_sections(
    path: &Path,
    (borrowed, own): (Option<&str>, &str),
    ids: &[String],
) -> Result<Values> {
    let named =
        |what: String| Failure::usage(format!("configuration `{}`: {what}", path.display()));
    let text = fs_err::read_to_string(path)
        .map_err(|e| Failure::usage(e.to_string()).hint("CONFIG must name a readable YAML file"))?;
    let root: BTreeMap<String, Option<BTreeMap<String, Value>>> =
        serde_yaml::from_str(&text).map_err(|e| named(e.to_string()))?;
    if let Some(unknown) = root.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
        return Err(named(format!("unknown section `{unknown}`{}", suggest(unknown, SECTIONS))));
    }
    let known: Vec<&str> = ids.iter().map(String::as_str).collect();
    let keys: Vec<String> = VARIABLES.iter().map(|v| v.to_lowercase()).collect();
    let shared: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for name in ["common"].into_iter().chain(borrowed).chain([own]) {
        for (key, value) in root.get(name).cloned().flatten().unwrap_or_default() {
            if !known.contains(&key.as_str()) {
                if name != own && shared.contains(&key.as_str()) {
                    continue;
                }
                let candidates = if name == own { &known } else { &shared };
                return Err(named(format!(
                    "unknown key `{name}.{key}`{}",
                    suggest(&key, candidates)
                )));
            }
            match yaml_values(&value) {
                Some(values) => found.insert(key, values),
                None => {
                    return Err(named(format!(
                        "`{name}.{key}` must be a scalar or a list of scalars"
                    )));
                }
            };
        }
    }
    Ok(found.into_iter().filter(|(_, values)| !values.is_empty()).collect())
}

pub(super) fn suggest(name: &str, known: &[&str]) -> String {
    nearest(name, known).map_or_else(
        || format!("; known are {}", known.join(", ")),
        |(near, _)| format!("; did you mean `{near}`?"),
    )
}

/// The value as clap would see it on the command line; null is unset.
pub(super) fn yaml_values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Bool(b) => Some(vec![b.to_string()]),
        Value::Number(n) => Some(vec![n.to_string()]),
        Value::String(s) => Some(vec![s.clone()]),
        Value::Sequence(items) => {
            let nested: Option<Vec<_>> = items.iter().map(yaml_values).collect();
            nested.map(|v| v.into_iter().flatten().collect())
        }
        _ => None,
    }
}

fn origins(matches: &ArgMatches, command: &Command, layers: &[Layer]) -> ResolvedConfig {
    let setting = |arg: &clap::Arg| {
        let id = arg.get_id().as_str();
        let from_file = layers.iter().find(|layer| layer.has(id));
        let origin = match (matches.value_source(id), from_file) {
            (Some(ValueSource::CommandLine), _) => "command line".to_owned(),
            (Some(ValueSource::EnvVariable), _) => "environment".to_owned(),
            (_, Some(layer)) => layer.path.display().to_string(),
            _ => "default".to_owned(),
        };
        let raw = matches.try_get_raw(id).ok().flatten();
        let value = raw.map(|raw| raw.map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(" "));
        let value = if SECRETS.contains(&id) {
            value.map(|_| "***".into())
        } else if matches!(arg.get_action(), clap::ArgAction::Append) {
            // However a list is written, equal lists are equal settings.
            value.map(|list| list_items(&list).collect::<Vec<_>>().join(" "))
        } else {
            value
        };
        (id.to_owned(), Setting { value, origin })
    };
    ResolvedConfig(command.get_arguments().map(setting).collect())
}

/// The items of a list: commas and blanks separate them.
fn list_items(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ', '\t', '\n']).filter(|item| !item.is_empty())
}

/// A list within one value, as in `LAYERS="0 2"` or `LAYERS=0,2`; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: std::str::FromStr<Err: std::fmt::Display>> std::str::FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let item = |item: &str| item.parse().map_err(|e| format!("`{item}`: {e}"));
        let items = list_items(text).map(item).collect::<std::result::Result<Vec<T>, _>>()?;
        if items.is_empty() { Err("the list is empty".to_owned()) } else { Ok(Self(items)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_letter_off_is_an_error_and_two_are_not() {
        let check = |name: &str| check_variables(std::iter::once((name.into(), "".into())));
        for typo in ["TOPK", "LAYER_NUMB", "MODLE_ID", "BATCH_SIZE_TRIAN", "EPOCH"] {
            let failure = check(typo).unwrap_err();
            assert_eq!(failure.kind, super::super::Kind::Usage);
            assert!(failure.source.to_string().contains("did you mean"), "{typo}");
        }
        for fine in ["PATH", "HOME", "HOST", "LS", "TOP_K", "STATE_DIR", "LANG", "PWD"] {
            check(fine).unwrap();
        }
    }

    #[test]
    fn underscores_in_flags_are_dashes_and_values_stay() {
        let argv = ["x", "--run_id=a_b", "--top_k", "a_b"].map(OsString::from).to_vec();
        let expected = ["x", "--run-id=a_b", "--top-k", "a_b"].map(OsString::from).to_vec();
        assert_eq!(dashes(argv), expected);
    }

    #[test]
    fn variables_are_sorted_and_distinct() {
        let mut sorted = VARIABLES.to_vec();
        sorted.sort_unstable_by_key(|v| v.replace('_', "\u{7f}"));
        sorted.dedup();
        assert_eq!(sorted.len(), VARIABLES.len());
    }
}
