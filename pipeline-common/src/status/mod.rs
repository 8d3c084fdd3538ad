//! pipeline_status: all workers and stages of a run in one table.
//!
//! `gather` reads the store, `queue` asks SLURM, `view` puts both together, `table` shows it.
//! Nothing is written and no lock is taken, so that looking never disturbs a worker.

mod gather;
mod queue;
mod table;
mod view;

use std::time::{Duration, Instant};

use clap::{Args, Parser, builder::BoolishValueParser};

use crate::stage::{CommonArgs, Context, Failure, Result, Stage, store::Store};
use gather::Facts;
use view::View;

/// Columns where standard output is no terminal.
const WIDTH: usize = 120;

const EXAMPLES: &str = "\
Examples:
  pipeline_status                      the newest complete capture, or the newest one
  RUN_ID=my-capture pipeline_status    a certain one, with the trainings made from it
  pipeline_status --watch              again every 2 seconds, until Ctrl-C
  pipeline_status --watch=30 --json    one JSON line every 30 seconds
  pipeline_status --json | jq '.stages[].workers[] | select(.state == \"stalled\")'

States: running, stalled! (silent for STALL_AFTER seconds), lost! (its job or process is gone),
failed!, stopped, waiting, done; words in capitals are SLURM's own.";

/// Shows all workers and stages of a run: state, progress, rate, ETA, restarts.
///
/// Reads the progress files and manifests of a capture run and of the trainings made from it, and
/// asks squeue and sacct where they are. Changes nothing.
#[derive(Parser, Debug)]
#[command(name = "pipeline_status", version, after_help = EXAMPLES)]
pub struct PipelineStatus {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    status: StatusArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Status")]
struct StatusArgs {
    /// Seconds of silence after which a running worker counts as stalled
    #[arg(long, env, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u32).range(1..))]
    stall_after: u32,
    /// Show it again every so many seconds, until Ctrl-C
    #[arg(long, env, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
          default_missing_value = "2", value_parser = clap::value_parser!(u32).range(1..))]
    watch: Option<u32>,
    /// Print one JSON object instead of a table
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    json: bool,
}

impl Stage for PipelineStatus {
    const SECTION: &'static str = "pipeline_status";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let Some(every) = self.status.watch else {
            let view = self.view()?;
            context.print(&self.text(&view)?);
            return readable(&view);
        };
        while !context.stop.requested() {
            let text = self.text(&self.view()?)?;
            context.print(&if self.on_terminal() { redrawn(&text) } else { text });
            let shown = Instant::now();
            while shown.elapsed() < Duration::from_secs(every.into()) && !context.stop.requested() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn check(&self, context: &Context) -> Result<()> {
        let view = self.view()?;
        context.print(&self.text(&view)?);
        readable(&view)
    }
}

impl PipelineStatus {
    fn view(&self) -> Result<View> {
        let store = Store::new(self.common.store_root());
        let facts = Facts::gather(&store, self.common.run_id.as_deref())?;
        Ok(View::new(facts, self.status.stall_after.into()))
    }

    fn on_terminal(&self) -> bool {
        !self.status.json && console::Term::stdout().is_term()
    }

    fn text(&self, view: &View) -> Result<String> {
        if self.status.json {
            let json = match self.status.watch {
                // One line a document, as programs read a stream of them.
                Some(_) => serde_json::to_string(view),
                None => serde_json::to_string_pretty(view),
            };
            return Ok(json.map_err(std::io::Error::from)? + "\n");
        }
        let width =
            if self.on_terminal() { usize::from(console::Term::stdout().size().1) } else { WIDTH };
        Ok(table::table(view, width, self.on_terminal() && console::colors_enabled()))
    }
}

/// From the top of the terminal, each line cleared as it is replaced, so that nothing flickers.
fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn readable(view: &View) -> Result<()> {
    match &view.unreadable[..] {
        [] => Ok(()),
        [first, others @ ..] => {
            let more = if others.is_empty() {
                String::new()
            } else {
                format!("; and {} more files", others.len())
            };
            Err(Failure::input(format!("a file of the run cannot be read: {first}{more}")))
        }
    }
}
