//! plan_run: what a training costs, and what finished ones say of a larger one.
//!
//! `subject` is the training that is planned, `rate` how fast it is here, `runs` the finished ones,
//! `forecast` what follows from them by `laws` (over `least_squares`); `answer` has it all, for
//! `table` and `page` to show and for `recipe`, which writes the settings down.

mod answer;
mod forecast;
mod laws;
mod least_squares;
mod page;
mod rate;
mod recipe;
mod runs;
mod subject;
mod table;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, builder::BoolishValueParser};

use self::answer::Answer;
use crate::{
    sae::{
        settings::values::positive,
        train::{SubjectArgs, TrainSae},
    },
    stage::{CommonArgs, Context, Failure, Result, Stage, atomic, config::List},
};

const EXAMPLES: &str = "\
Examples:
  RUN_ID=my-capture D_SAE=65536 TOP_K=64 plan_run       what it costs, measured here
  plan_run --d-in 4096 --d-sae 65536 --tokens 500000000 the same without a capture
  FROM_RUNS='sweep-*' D_SAE=65536 OUTPUT=large.yaml plan_run
                                                        and what small runs promise; writes its settings
  CONFIG=large.yaml sbatch slurm/submit_train_sae.sh    trains with them";

/// Says what a training costs before it is queued.
///
/// Takes the settings of `02_train_sae`. From finished trainings (FROM_RUNS) it fits power laws of the
/// held-out error and of the best learning rate, and extrapolates them to the one that is planned.
#[derive(Parser, Clone, Debug)]
#[command(name = "plan_run", version, after_help = EXAMPLES)]
pub struct PlanRun {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    planning: PlanArgs,
    #[command(flatten)]
    subject: SubjectArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Planning")]
struct PlanArgs {
    /// Width of the hook, to plan without a capture; needs TOKENS
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    d_in: Option<u32>,
    /// Finished trainings to learn from: names, or patterns with * and ?, separated by commas or blanks
    #[arg(long, env, value_name = "NAMES")]
    from_runs: Vec<List<String>>,
    /// Tokens a second where it will be trained, instead of measuring here
    #[arg(long, env, value_name = "RATE", value_parser = positive)]
    tokens_per_second: Option<f64>,
    /// How long to measure, in seconds
    #[arg(long, env, value_name = "SECONDS", default_value = "5", value_parser = positive)]
    probe_seconds: f64,
    /// Write the settings here, as a CONFIG for 02_train_sae, and plots beside them as HTML
    #[arg(long, env, value_name = "FILE.yaml")]
    output: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    json: bool,
}

impl Stage for PlanRun {
    const SECTION: &'static str = "plan_run";
    const BORROWED: Option<&'static str> = Some(TrainSae::SECTION);

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        // A name that will not do is said before time is spent on measuring.
        let beside = |yaml: &PathBuf| Ok::<_, Failure>((yaml.clone(), page_beside(yaml)?));
        let files = self.planning.output.as_ref().map(beside).transpose()?;
        let answer = self.answer(context)?;
        if let Some((yaml, page)) = files {
            atomic::write(&yaml, recipe::yaml(&answer, context)?.as_bytes())?;
            atomic::write(&page, page::render(&answer)?.as_bytes())?;
            tracing::info!("wrote `{}` and `{}`", yaml.display(), page.display());
        }
        self.print(&answer, context)
    }

    fn check(&self, context: &Context) -> Result<()> {
        self.print(&self.answer(context)?, context)
    }
}

impl PlanRun {
    fn answer(&self, context: &Context) -> Result<Answer> {
        Answer::new(&self.common, &self.planning, &self.subject, context)
    }

    fn print(&self, answer: &Answer, context: &Context) -> Result<()> {
        context.print(&if self.planning.json {
            format!("{:#}\n", serde_json::to_value(answer).map_err(std::io::Error::other)?)
        } else {
            table::table(answer)
        });
        Ok(())
    }
}

/// Where the page goes.
fn page_beside(output: &Path) -> Result<PathBuf> {
    if output.extension().is_none_or(|e| e != "yaml" && e != "yml") {
        let what =
            format!("OUTPUT is `{}`, which is not the name of a .yaml file", output.display());
        return Err(Failure::usage(what).hint("the page of plots gets the same name with .html"));
    }
    Ok(output.with_extension("html"))
}
