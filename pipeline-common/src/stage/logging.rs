//! Messages: to standard error for people, and as JSON lines to a file where asked.
//!
//! Written synchronously, so that nothing is lost when the process is killed.

use std::{
    io::{self, IsTerminal},
    path::Path,
    sync::Mutex,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::{Failure, Result};

/// Starts logging at `level`; other crates speak from `warn` on. `RUST_LOG` refines it.
///
/// # Errors
/// When the JSON file cannot be opened.
pub fn init(level: LevelFilter, json: Option<&Path>) -> Result<()> {
    let failed = |e: io::Error| {
        Failure::from(e)
            .context("LOG_JSON cannot be opened")
            .hint("set LOG_JSON to a file in a directory that you can write to")
    };
    let layers = match json {
        Some(path) => vec![human(level), json_lines(level, path).map_err(failed)?],
        None => vec![human(level)],
    };
    tracing_subscriber::registry().with(layers).init();
    Ok(())
}

/// Messages for the JSON file alone: standard error shows them in a form of its own.
pub const FILE_ONLY: &str = "pipeline_common::file_only";

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn human(level: LevelFilter) -> BoxedLayer {
    let layer = fmt::layer().with_writer(io::stderr).with_target(false);
    let shown = filter_fn(|metadata| metadata.target() != FILE_ONLY).and(filter(level));
    if io::stderr().is_terminal() {
        layer.without_time().with_filter(shown).boxed()
    } else {
        layer.with_ansi(false).with_filter(shown).boxed()
    }
}

fn json_lines(level: LevelFilter, path: &Path) -> io::Result<BoxedLayer> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(fmt::layer().json().with_writer(Mutex::new(file)).with_filter(filter(level)).boxed())
}

fn filter(level: LevelFilter) -> EnvFilter {
    let others = level.min(LevelFilter::WARN);
    let default = format!("{others},pipeline_common={level}");
    EnvFilter::builder().parse_lossy(std::env::var("RUST_LOG").unwrap_or(default))
}
