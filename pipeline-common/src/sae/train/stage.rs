//! What to train: one SAE, or each entry of a sweep.

use std::{ops::Range, path::PathBuf};

use clap::{Args, Parser, builder::BoolishValueParser};

use super::{
    budget::Budget,
    compare::Comparison,
    job::{Job, Subject},
    together,
};
use crate::{
    remote::ReaderArgs,
    sae::settings::TrainArgs,
    stage::{
        CommonArgs, Context, Failure, Result, Stage,
        entries::{self, Entry},
        progress::{bytes, thousands},
    },
};

const EXAMPLES: &str = "\
Examples:
  02_train_sae                                   train on the newest capture
  TOP_K=32 N_LATENTS_MULTIPLIER=8 02_train_sae   a wider, denser SAE
  SAE_ARCH=jumprelu L0_LAMBDA=5e-4 02_train_sae
  SAE_ARCH=matryoshka TOP_K=32 PREFIXES=0.125,0.5,1 02_train_sae
  HOOK=mlp_in TARGET_HOOK=mlp_out SKIP=1 02_train_sae     a transcoder with a linear path
  SWEEP=sweep.yaml SAE_RUN_ID=s 02_train_sae     an SAE for each entry of a list, in one read
  SWEEP=sweep.yaml SAE_RUN_ID=s 02_train_sae --compare    their figures as a table
  RUN_ID=my-capture 02_train_sae --check         what it would cost
  sbatch slurm/submit_train_sae.sh               the same as a SLURM job";

/// What is trained, and on which rows.
#[derive(Args, Clone, Debug)]
pub struct SubjectArgs {
    /// How.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Name of the training run [default: made from the capture and the settings]
    #[arg(long, env, value_name = "NAME")]
    pub sae_run_id: Option<String>,
    /// Which of the capture's hooks to train on, where it has several
    #[arg(long, env, value_name = "NAME")]
    pub hook: Option<String>,
    /// Train a transcoder: reconstruct this hook's rows from those of HOOK
    #[arg(long, env, value_name = "NAME")]
    pub target_hook: Option<String>,
    /// Give the transcoder a linear path around its latents
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub skip: bool,
    /// Where shards are read from.
    #[command(flatten)]
    pub reader: ReaderArgs,
}

/// Trains sparse autoencoders on captured activations.
///
/// Reads the newest complete capture (or RUN_ID) and writes a SAELens directory under
/// STORE_DIR/runs/. Run it again after an interruption: it goes on at the last checkpoint and ends
/// with the same bits.
#[derive(Parser, Clone, Debug)]
#[command(name = "02_train_sae", version, after_help = EXAMPLES)]
pub struct TrainSae {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    #[command(flatten)]
    pub(super) subject: SubjectArgs,
    /// YAML list of settings, each for an SAE of its own, called SAE_RUN_ID-NAME after the entry's
    /// `name` or its number: all are trained in one read of the rows, or each by the element of a
    /// job array that has its number
    #[arg(long, env, value_name = "FILE", help_heading = "Sweep")]
    sweep: Option<PathBuf>,
    /// Train this entry of SWEEP alone, counted from 0 [default: SLURM_ARRAY_TASK_ID, else all]
    #[arg(long, env, value_name = "N", help_heading = "Sweep")]
    sweep_task: Option<usize>,
    /// Print the figures of SWEEP's SAEs, as far as they are trained, and exit
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set,
          help_heading = "Sweep")]
    compare: bool,
}

impl Stage for TrainSae {
    const SECTION: &'static str = "train_sae";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let (subjects, _) = self.subjects(context)?;
        let chosen = self.chosen(context, subjects.len())?;
        let texts = subjects.into_iter().skip(chosen.start).take(chosen.len());
        let texts = texts.map(|subject| Ok(cost(&subject.open()?))).collect::<Result<Vec<_>>>()?;
        context.print(&texts.join("\n"));
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let (subjects, comparison) = self.subjects(context)?;
        if self.compare {
            let Some(comparison) = comparison else {
                return Err(Failure::usage("COMPARE is set, but SWEEP is not")
                    .hint("SWEEP names the file that the SAEs were trained with"));
            };
            subjects.iter().try_for_each(Subject::fetch)?;
            return comparison.show(context);
        }
        let chosen = self.chosen(context, subjects.len())?;
        let subjects = subjects.into_iter().skip(chosen.start).take(chosen.len());
        let jobs = subjects.map(Subject::open).collect::<Result<Vec<Job>>>()?;
        let trained = together::train(context, &jobs);
        let shown = comparison.map_or(Ok(()), |comparison| comparison.show(context));
        trained.and(shown)
    }
}

impl TrainSae {
    /// The SAE, or that of each entry of SWEEP and what compares them.
    fn subjects(&self, context: &Context) -> Result<(Vec<Subject>, Option<Comparison>)> {
        if self.common.device.starts_with("cuda") {
            return Err(Failure::unavailable(
                "DEVICE is cuda, but training computes on the CPU only",
            )
            .hint("set DEVICE=cpu or leave it at auto"));
        }
        let Some(sweep) = &self.sweep else {
            let subject = Subject::new(&self.common, self.subject.clone(), context.clone(), None)?;
            return Ok((vec![subject], None));
        };
        let entries = entries::read::<Self>(sweep)?;
        let subject = |entry: &Entry| {
            let (settings, config) = entry.resolve::<Self>()?;
            let context = Context { config, ..context.clone() };
            Subject::new(&settings.common, settings.subject, context, Some(&entry.name))
        };
        let subjects = entries.iter().map(subject).collect::<Result<Vec<_>>>()?;
        for (i, subject) in subjects.iter().enumerate() {
            if let Some(same) = subjects[..i].iter().position(|s| s.run_id == subject.run_id) {
                let (a, b) = (&entries[same].name, &entries[i].name);
                let what = format!("entries `{a}` and `{b}` of `{}` are the same", sweep.display());
                return Err(Failure::usage(what));
            }
        }
        let comparison = Comparison::new(self.subject.sae_run_id.as_deref(), &entries, &subjects);
        Ok((subjects, Some(comparison)))
    }

    /// Which of `entries` SAEs this process trains.
    fn chosen(&self, context: &Context, entries: usize) -> Result<Range<usize>> {
        let in_array = context.slurm.array_task_id.filter(|_| self.sweep.is_some());
        match self.sweep_task.or(in_array) {
            None => Ok(0..entries),
            Some(_) if self.sweep.is_none() => {
                Err(Failure::usage("SWEEP_TASK is set, but SWEEP is not"))
            }
            Some(task) if task < entries => Ok(task..task + 1),
            Some(task) => {
                let what = format!("there is no entry {task} in SWEEP, which has {entries}");
                Err(Failure::usage(what).hint(format!("submit with --array=0-{}", entries - 1)))
            }
        }
    }
}

/// What a training costs.
fn cost(job: &Job) -> String {
    let (subject, plan) = (&job.subject, &job.plan);
    let budget = Budget::new(&subject.settings.train, plan, None);
    let products = budget.tokens as f64 * budget.flop.encoder;
    format!(
        "run         {}\ncapture     {} ({} rows)\nhook        {} (d_in {})\nSAE         {:?}, d_sae {}\n\
         steps       {} of {} rows, {} held out\nmemory      {}\ndisk        {}\n\
         arithmetic  {:.3e} FLOP, {products:.3e} of them in the encoder's products, on {} threads\n",
        subject.run_id,
        subject.capture.run_id,
        thousands(job.rows.input.set.rows() as u64),
        subject.hooks(),
        plan.shape.d_in,
        subject.settings.train.sae_arch,
        plan.shape.d_sae,
        thousands(budget.steps),
        thousands(budget.step_rows),
        thousands(job.rows.held_out.len() as u64),
        bytes(budget.memory.total()),
        bytes(budget.disk),
        budget.total_flop(),
        subject.context.threads,
    )
}
