//! Stage 04 from its arguments to its files.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use clap::Parser;

use super::{
    args::{Action, Backend, BackendArgs, ChoiceArgs, CostArgs},
    batch,
    chat::{self, Questions},
    export,
    job::Job,
    ledger::{self, Event, Ledger},
    names, parse,
    provider::Provider,
    question::{Asking, Question},
    score,
    status::{self, Plan},
};
use crate::{
    names::NameRecord,
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Reporter, Result, Stage,
        store::{Pointer, Store},
    },
    top::TopData,
};

const EXAMPLES: &str = "\
Examples:
  04_name_latents send --dry-run        requests, tokens and price of all names and scores
  04_name_latents send                  ask; answered questions are never asked again
  04_name_latents retrieve              fetch batches that have ended (75: some have not)
  04_name_latents parse                 write names/names.jsonl and names.yaml (75: answers are to come)
  04_name_latents score                 ask for judgements, write the scores (75: some are to come, so
                                        again after retrieve)
  04_name_latents export                names for Neuronpedia, latents for delphi
  04_name_latents                       what was asked, answered and paid
  LATENTS=top:500 MAX_COST=5 NAMING_MODEL=claude-haiku-4-5 04_name_latents send
  BACKEND=openai NAMING_MODEL=gpt-4o-mini 04_name_latents send
  BACKEND=chat OPENAI_BASE_URL=http://localhost:8000/v1 NAMING_MODEL=qwen3 04_name_latents send
  sbatch slurm/submit_name_latents.sh   all of it as a SLURM job";

/// A description as long as most, for names that are not there yet.
const PLACEHOLDER: &str = "a sentence that says what the tokens in which the latent is active have in \
    common, and another one that says what it is not about";

/// Has a language model name the latents, and judge the names.
///
/// Shows it the sentences that 03_top_sentences found, and writes names, scores and a ledger of
/// everything that was asked and paid into names/ of the training. Every action can be repeated: it goes on
/// where the last one ended, however that ended.
#[derive(Parser, Debug)]
#[command(name = "04_name_latents", version, after_help = EXAMPLES)]
pub struct NameLatents {
    /// What to do
    #[arg(env, value_enum, value_name = "ACTION", default_value_t = Action::Status)]
    naming_action: Action,
    #[command(flatten)]
    common: CommonArgs,
    /// Training run to read [default: the newest complete one, in sae_run_id.txt]
    #[arg(long, env, value_name = "NAME")]
    sae_run_id: Option<String>,
    /// Tokens that `export` caches for delphi, from the beginning of the capture
    #[arg(long, env, default_value_t = 1_000_000, value_name = "N")]
    export_tokens: u64,
    #[command(flatten)]
    choice: ChoiceArgs,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    cost: CostArgs,
}

impl Stage for NameLatents {
    const SECTION: &'static str = "name_latents";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        match self.naming_action {
            Action::Send | Action::Score => self.plan(context),
            Action::Retrieve | Action::Parse | Action::Export | Action::Status => {
                context.print(&status::status(&self.dir()?)?);
                Ok(())
            }
        }
    }

    fn run(&self, context: &Context) -> Result<()> {
        if self.cost.dry_run {
            return match self.naming_action {
                Action::Send | Action::Score => self.plan(context),
                other => Err(Failure::usage(format!("`{}` knows no DRY_RUN", other.name()))
                    .hint("`send` and `score` send requests; the other actions cost nothing")),
            };
        }
        match self.naming_action {
            Action::Send => self.send(context),
            Action::Score => self.score(context),
            Action::Retrieve => {
                batch::retrieve(context, &self.dir()?, &self.backend, share(context)?)
            }
            Action::Parse => self.parse(context),
            Action::Export => export::export(
                context,
                &self.store()?,
                self.sae_run_id.as_deref(),
                self.export_tokens,
            ),
            Action::Status => {
                context.print(&status::status(&self.dir()?)?);
                Ok(())
            }
        }
    }
}

/// This worker's part: an array's elements share the latents.
fn share(context: &Context) -> Result<Share> {
    Ok(context.slurm.share(None, None)?)
}

impl NameLatents {
    fn store(&self) -> Result<Store> {
        if self.common.store_url().is_some() {
            return Err(Failure::usage("04_name_latents needs a STORE_DIR that is a directory")
                .hint("its ledger must outlive the node, or answers would be paid twice"));
        }
        Ok(Store::new(self.common.store_root()))
    }

    fn training_run(&self) -> Result<PathBuf> {
        Ok(self.store()?.find(self.sae_run_id.as_deref(), Pointer::Training)?.1)
    }

    /// `names/` of the training run.
    fn dir(&self) -> Result<PathBuf> {
        Ok(self.training_run()?.join(names::DIRECTORY))
    }

    fn job<'a>(&'a self, context: &'a Context) -> Result<Job<'a>> {
        let run = self.training_run()?;
        let data = TopData::open(&run.join("top_sentences"))?;
        let model = self.backend.model()?;
        let price = self.cost.price_or_free(model, self.backend.backend)?;
        let latents = Job::own(self.choice.chosen(&data)?, share(context)?);
        let asking = Asking { model: model.to_owned(), answer_tokens: self.backend.answer_tokens };
        Ok(Job {
            context,
            dir: run.join(names::DIRECTORY),
            data,
            latents,
            asking,
            price,
            backend: &self.backend,
            cost: &self.cost,
            retry_failed: self.backend.retry_failed,
        })
    }

    /// `--dry-run`: what would be sent; before there are names, what they and their scores take together.
    fn plan(&self, context: &Context) -> Result<()> {
        let job = &self.job(context)?;
        let explain = self.naming_action == Action::Send;
        let states = ledger::all(&job.dir)?;
        let known = ledger::merged(states.into_iter().map(|state| state.requests));
        let known = |id: &str| known.get(id);
        let names = names::read(&job.dir)?;
        let kinds = self.choice.judgements();
        let mut plan = Plan::default();
        for latent in &job.latents {
            if explain && let Some(question) = job.explain(*latent)? {
                plan.add(job, &question, known);
            }
            let name = match names.get(latent) {
                Some(name) => name.clone(),
                None if explain => placeholder(*latent),
                None => continue,
            };
            for question in job.judge(&name, &kinds)? {
                plan.add(job, &question, known);
            }
        }
        let said = if explain { "; `score` asks all but explain" } else { "" };
        job.context.print(&format!(
            "{} latents, {} at {}{said}\n{}",
            job.latents.len(),
            job.asking.model,
            self.backend.backend,
            plan.table(job.price),
        ));
        Ok(())
    }

    fn send(&self, context: &Context) -> Result<()> {
        let job = self.job(context)?;
        let share = share(context)?;
        let mut ledger = Ledger::open(&job.dir, share)?;
        let silent = Mutex::new(Vec::new());
        let asked = self.ask(&job, share, &mut ledger, |latent| {
            let question = job.explain(latent)?;
            if question.is_none() {
                silent.lock().unwrap_or_else(PoisonError::into_inner).push(latent);
            }
            Ok(question.into_iter().collect())
        });
        let mut unasked = silent.into_inner().unwrap_or_else(PoisonError::into_inner);
        unasked.retain(|latent| !ledger.state().unasked.contains_key(latent));
        let why = "no sentence of a document that may explain it";
        let event = |latent| Event::Unasked { latent, why: why.to_owned() };
        ledger.write(unasked.into_iter().map(event).collect())?;
        asked
    }

    fn parse(&self, context: &Context) -> Result<()> {
        let run = self.training_run()?;
        let dir = run.join(names::DIRECTORY);
        let data = TopData::open(&run.join("top_sentences"))?;
        let parsed = parse::parse(&dir)?;
        context.print(&format!(
            "{} names in {}\n{} latents without a name in {}\n",
            parsed.names.len(),
            dir.join(names::NAMES).display(),
            parsed.unnamed.len(),
            dir.join(names::UNNAMED).display(),
        ));
        let chosen = Job::own(self.choice.chosen(&data)?, share(context)?);
        let open = chosen.iter().filter(|latent| parsed.open.contains(latent)).count();
        if open > 0 {
            return Err(Failure::stopped(format!("{open} latents have no readable answer yet"))
                .hint("`retrieve` what is under way, `send` the rest again, then `parse`"));
        }
        Ok(())
    }

    fn score(&self, context: &Context) -> Result<()> {
        let mut job = self.job(context)?;
        let share = share(context)?;
        let kinds = self.choice.judgements();
        let names = names::read(&job.dir)?;
        let d_sae = job.data.d_sae();
        if let Some(latent) = names.keys().find(|latent| **latent as usize >= d_sae) {
            let path = job.dir.join(names::NAMES);
            let what = format!("`{}` names latent {latent}, the SAE has {d_sae}", path.display());
            return Err(
                Failure::input(what).hint("`parse` writes it anew; is the ledger this SAE's?")
            );
        }
        let unnamed = names::read_unnamed(&job.dir)?;
        if job.latents.iter().all(|latent| unnamed.contains_key(latent)) {
            tracing::info!("none of the {} latents has a name to judge", job.latents.len());
            return Ok(());
        }
        if names.is_empty() {
            return Err(Failure::input("there are no names to judge")
                .hint("`send`, for batches `retrieve`, and `parse` make them"));
        }
        let mut ledger = Ledger::open(&job.dir, share)?;
        let asked = self.ask(&job, share, &mut ledger, |latent| match names.get(&latent) {
            Some(name) => job.judge(name, &kinds),
            None => Ok(Vec::new()),
        });
        job.retry_failed = false;
        let own: Vec<&NameRecord> = job.latents.iter().filter_map(|l| names.get(l)).collect();
        let (scores, open) = score::scores(&job, &own, &kinds, |id| ledger.request(id))?;
        let table = parse::change(&job.dir, |now| {
            for (latent, found) in scores {
                let before = names.get(&latent);
                if let (Some(name), Some(before)) = (now.get_mut(&latent), before)
                    && name.is_same_name(before)
                {
                    name.scores.take_over(found);
                }
            }
            score::table(&job.dir, now, |latent| job.data.density(latent as usize))
        })?;
        context.print(&table);
        asked?;
        if open > 0 {
            return Err(Failure::stopped(format!("{open} judgements are to come"))
                .hint("`retrieve` what is under way, then `score` again"));
        }
        Ok(())
    }

    /// Sends what is open of the questions that `of` makes of each latent.
    fn ask(
        &self,
        job: &Job<'_>,
        share: Share,
        ledger: &mut Ledger,
        of: impl Fn(u32) -> Result<Vec<Question>> + Sync,
    ) -> Result<()> {
        let provider = Provider::new(job.context, &self.backend, self.backend.backend)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        ledger.write(vec![Event::Began { version, config: job.context.config.clone() }])?;
        let run = job.dir.parent().unwrap_or(&job.dir);
        let reporter = Reporter::new(job.context, run, Self::SECTION, share);
        let total = job.latents.len() as u64;
        let sent = reporter.watch(|| {
            reporter.begin("latents", 0, total);
            let progress = job.context.progress("asking", total, "latents");
            let mut progress = progress.reported_by(&reporter);
            let mut questions = job.latents.iter().flat_map(|latent| {
                let made = of(*latent);
                progress.advance(1, 0, "");
                let (good, bad) = match made {
                    Ok(questions) => (questions, None),
                    Err(failure) => (Vec::new(), Some(Err(failure))),
                };
                good.into_iter().map(Ok).chain(bad)
            });
            let questions: Questions<'_> = &mut questions;
            match self.backend.backend {
                Backend::Chat => chat::send(job, &provider, ledger, questions),
                Backend::Anthropic | Backend::Openai => {
                    batch::send(job, &provider, ledger, questions)
                }
            }
        })?;
        tracing::info!("{sent} requests sent");
        Ok(())
    }
}

fn placeholder(latent: u32) -> NameRecord {
    let (label, description) = ("a few words of a label".to_owned(), PLACEHOLDER.to_owned());
    NameRecord { latent, label, description, ..NameRecord::default() }
}
