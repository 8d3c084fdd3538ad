//! All that plan_run finds.

use serde::Serialize;

use super::{
    PlanArgs,
    forecast::Forecast,
    laws::Sizes,
    rate::Rate,
    runs,
    subject::{Input, Planned},
};
use crate::{
    sae::train::{Budget, SubjectArgs},
    stage::{CommonArgs, Context, Result},
};

/// How much longer than expected a job may take.
const TIME_RESERVE: f64 = 1.25;
/// Starting, opening shards, the last validation and saving.
const TIME_AROUND: f64 = 600.0;
/// A job's time is a multiple of this, in seconds.
const TIME_STEP: f64 = 900.0;
/// Of the memory that a job asks for, the part that is for shards in the page cache and for what is
/// not counted.
const MEMORY_RESERVE: f64 = 1.25;

/// The answer.
#[derive(Serialize)]
pub(super) struct Answer {
    /// SAE_ARCH.
    pub architecture: String,
    /// The capture it is planned for.
    pub capture: Option<String>,
    /// Its hook, or both of a transcoder.
    pub hooks: Option<String>,
    /// Width of the input.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Active latents a row, where settings decide them.
    pub k: Option<f64>,
    /// Arithmetic, memory, disk, reading.
    pub budget: Budget,
    /// How fast it is.
    pub rate: Rate,
    /// Hours of all steps.
    pub hours: f64,
    /// Bytes a second to be read at that rate.
    pub read_per_second: f64,
    /// What to ask SLURM for.
    pub sbatch: Sbatch,
    /// What finished trainings say.
    pub forecast: Option<Forecast>,
}

/// What to ask SLURM for.
#[derive(Serialize)]
pub(super) struct Sbatch {
    /// `--time`.
    pub time: String,
    /// `--mem`.
    pub mem: String,
}

impl Answer {
    /// Finds all of it.
    ///
    /// # Errors
    /// Those of 02_train_sae for its settings and rows, and of the finished trainings.
    pub fn new(
        common: &CommonArgs,
        planning: &PlanArgs,
        subject: &SubjectArgs,
        context: &Context,
    ) -> Result<Self> {
        let planned = Planned::new(common, planning, subject, context)?;
        let budget = Budget::new(&planned.args.train, &planned.plan, None);
        let sizes = Sizes {
            d_sae: planned.plan.shape.d_sae as f64,
            k: runs::k(&context.config, planned.args.train.sae_arch),
            tokens: budget.tokens as f64,
        };
        // What is wrong with the names is said before time is spent on measuring.
        let forecast = if planning.from_runs.is_empty() {
            None
        } else {
            let found = runs::find(&subject.reader.reader(common)?, &planning.from_runs)?;
            Some(Forecast::new(found, &planned, sizes, context)?)
        };
        let rate = Rate::new(planning, &planned, &budget, context)?;
        let seconds = rate.seconds(budget.tokens);
        Ok(Self {
            architecture: context.config.value("sae_arch").unwrap_or_default().to_owned(),
            capture: match &planned.input {
                Input::Stored(job) => Some(job.subject.capture.run_id.clone()),
                Input::Width(_) => None,
            },
            hooks: planned.hooks(),
            d_in: planned.plan.shape.d_in,
            d_sae: planned.plan.shape.d_sae,
            k: sizes.k,
            hours: seconds / 3600.0,
            read_per_second: budget.read_per_token as f64 * rate.tokens_per_second,
            sbatch: Sbatch { time: time_limit(seconds), mem: mem(budget.memory.total()) },
            rate,
            budget,
            forecast,
        })
    }
}

/// `[D-]HH:MM:00`, with a reserve.
fn time_limit(seconds: f64) -> String {
    let quarters = ((TIME_RESERVE * seconds + TIME_AROUND) / TIME_STEP).ceil() as u64;
    let (days, hours, minutes) = (quarters / 96, quarters / 4 % 24, quarters % 4 * 15);
    let day = if days > 0 { format!("{days}-") } else { String::new() };
    format!("{day}{hours:02}:{minutes:02}:00")
}

/// Whole GiB, with a reserve.
fn mem(bytes: u64) -> String {
    format!("{}G", (MEMORY_RESERVE * bytes as f64 / (1_u64 << 30) as f64).ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_ask_slurm_for() {
        assert_eq!(time_limit(0.0), "00:15:00");
        assert_eq!(time_limit(3600.0), "01:30:00");
        assert_eq!(time_limit(40.0 * 3600.0), "2-02:15:00");
        assert_eq!((mem(1), mem(4 << 30), mem(5 << 30)), ("1G".into(), "5G".into(), "7G".into()));
    }
}
