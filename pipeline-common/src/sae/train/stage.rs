//! What to train, on what, and where it goes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Parser, builder::BoolishValueParser};
use serde_json::{Map, json};

use super::{
    record::{Claim, SCHEMA, TrainingMeta},
    session::{Intervals, Session},
};
use crate::{
    capture::{CaptureMeta, meta::HookRecord},
    remote::{Reader, ReaderArgs, mirror::Mirror},
    sae::{
        Parameters,
        checkpoint::Checkpoints,
        curves::{About as CurvesAbout, Curves, Marks},
        formats::saelens::{self, About},
        init::{Start, initialise},
        rows::{Rows, Side},
        settings::{Plan, TrainArgs},
        trainer::{State, Trainer},
    },
    shard::{ShardSet, format, reader::MANIFEST},
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Reporter, Result, Stage, atomic,
        lock::Lock,
        progress::{bytes, thousands},
        store::Pointer,
    },
};

const EXAMPLES: &str = "\
Examples:
  02_train_sae                                   train on the newest capture
  TOP_K=32 N_LATENTS_MULTIPLIER=8 02_train_sae   a wider, denser SAE
  SAE_ARCH=jumprelu L0_LAMBDA=5e-4 02_train_sae
  SAE_ARCH=matryoshka TOP_K=32 PREFIXES=0.125,0.5,1 02_train_sae
  HOOK=mlp_in TARGET_HOOK=mlp_out SKIP=1 02_train_sae     a transcoder with a linear path
  RUN_ID=my-capture 02_train_sae --check         what it would cost
  sbatch slurm/submit_train_sae.sh               the same as a SLURM job";

/// Trains a sparse autoencoder on captured activations.
///
/// Reads the newest complete capture (or RUN_ID) and writes a SAELens directory under
/// STORE_DIR/runs/. Run it again after an interruption: it goes on at the last checkpoint and ends
/// with the same bits.
#[derive(Parser, Debug)]
#[command(name = "02_train_sae", version, after_help = EXAMPLES)]
pub struct TrainSae {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    train: TrainArgs,
    /// Name of the training run [default: made from the capture and the settings]
    #[arg(long, env, value_name = "NAME")]
    sae_run_id: Option<String>,
    /// Which of the capture's hooks to train on, where it has several
    #[arg(long, env, value_name = "NAME")]
    hook: Option<String>,
    /// Train a transcoder: reconstruct this hook's rows from those of HOOK
    #[arg(long, env, value_name = "NAME")]
    target_hook: Option<String>,
    /// Give the transcoder a linear path around its latents
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    skip: bool,
    #[command(flatten)]
    reader: ReaderArgs,
}

/// The opened input and where the output goes.
struct Job {
    capture: CaptureMeta,
    /// blake3 of the capture's manifest.
    manifest: String,
    hook: HookRecord,
    target: Option<HookRecord>,
    rows: Rows,
    plan: Plan,
    run_id: String,
    run_dir: PathBuf,
    reader: Reader,
}

impl Stage for TrainSae {
    const SECTION: &'static str = "train_sae";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let job = self.open(context)?;
        let (plan, shape, threads) = (&job.plan, job.plan.shape, context.threads);
        let weights = shape.d_sae * (shape.d_in + shape.d_out) * size_of::<f32>();
        let copies = if plan.optimiser.ema.is_some() { 13 } else { 11 };
        // Parameters, two moments, gradients, and at the end a copy and its transpose; one batch
        // of inputs, errors and sparse latents.
        let memory =
            copies * weights / 2 + 4 * plan.batch * shape.d_in * size_of::<f32>() + (48 << 20);
        let flop = 2.0
            * (plan.step_rows() * plan.schedule.steps) as f64
            * (shape.d_in * shape.d_sae) as f64;
        // Checkpoints of parameters and moments, one more while it is written, the result.
        let disk = (3 * (self.train.keep_checkpoints as usize + 1) + 1) * weights;
        let target = job.target.as_ref().map_or(String::new(), |hook| format!(" to {}", hook.name));
        context.print(&format!(
            "run         {}\ncapture     {} ({} rows)\nhook        {}{target} (d_in {})\nSAE         {:?}, d_sae {}\n\
             steps       {} of {} rows, {} held out\nmemory      {}\ndisk        {}\n\
             arithmetic  {flop:.3e} FLOP in encoder products alone, on {threads} threads\n",
            job.run_id,
            job.capture.run_id,
            thousands(job.rows.input.set.rows() as u64),
            job.hook.name,
            shape.d_in,
            self.train.sae_arch,
            shape.d_sae,
            thousands(plan.schedule.steps),
            thousands(plan.step_rows()),
            thousands(job.rows.held_out.len() as u64),
            bytes(memory as u64),
            bytes(disk as u64),
        ));
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let job = self.open(context)?;
        let mut mirror = job.reader.mirror(&job.run_id, &job.run_dir);
        if let Some(mirror) = &mirror {
            mirror.pull()?;
        }
        // Before anything is written there: SAE_RUN_ID may name a capture.
        let done = TrainingMeta::read(&job.run_dir)?;
        fs_err::create_dir_all(&job.run_dir)?;
        let _lock =
            Lock::take(&job.run_dir.join("train.lock"), &format!("training run `{}`", job.run_id))?;
        job.claim(context).agree(context, &job.run_dir, &job.run_id)?;
        if done.is_some() {
            tracing::info!("training run `{}` is complete already", job.run_id);
            return job.publish(mirror.as_mut());
        }
        let reporter = Reporter::new(context, &job.run_dir, Self::SECTION, Share::WHOLE);
        reporter.watch(|| {
            reporter.begin("steps", 0, job.plan.schedule.steps);
            let mut session = self.session(context, &job)?;
            session.mirror = mirror;
            session.train(context, &reporter)?;
            self.finish(context, session, &job)
        })
    }
}

impl TrainSae {
    fn open(&self, context: &Context) -> Result<Job> {
        if self.common.device.starts_with("cuda") {
            return Err(Failure::unavailable(
                "DEVICE is cuda, but training computes on the CPU only",
            )
            .hint("set DEVICE=cpu or leave it at auto"));
        }
        let reader = self.reader.reader(&self.common)?;
        let (capture_id, capture_dir) =
            reader.find(self.common.run_id.as_deref(), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&capture_dir)?;
        let hook = capture.hook(self.hook.as_deref())?.clone();
        let capture_dir = reader.stage(context, &capture_id, &capture_dir, &hook.name)?;
        let target =
            self.target_hook.as_deref().map(|name| capture.hook(Some(name))).transpose()?;
        let target = target.cloned();
        let input = self.side(&capture_dir, &hook)?;
        let target_side = match &target {
            Some(hook) => {
                let dir = reader.stage(context, &capture_id, &capture_dir, &hook.name)?;
                Some(self.side(&dir, hook)?)
            }
            None => None,
        };
        let rows = Rows::new(input, target_side, self.train.validation)?;
        let d_out = rows.target.as_ref().map(|side| side.set.d_in());
        if self.skip && d_out.is_none() {
            return Err(Failure::usage("SKIP is set, but TARGET_HOOK is not")
                .hint("a linear path around the latents would make an autoencoder trivial"));
        }
        let plan = self.train.plan(rows.input.set.d_in(), d_out, self.skip, rows.training())?;
        let manifest = format::digest(&capture_dir.join(MANIFEST)).map_err(Failure::from)?.0;
        let run_id = self.sae_run_id.clone().unwrap_or_else(|| {
            let settings = context.config.scientific();
            let values = format!("{capture_id} {manifest} {} {:?}", hook.name, settings.values());
            format!("sae-{}-{}", hook.directory, &blake3::hash(values.as_bytes()).to_hex()[..8])
        });
        let run_dir = reader.store().run_dir(&run_id, Pointer::Training)?;
        Ok(Job { capture, manifest, hook, target, rows, plan, run_id, run_dir, reader })
    }

    fn side(&self, capture_dir: &std::path::Path, hook: &HookRecord) -> Result<Side> {
        let set = ShardSet::open(capture_dir, &hook.name)?;
        if set.stats().rms_norm() <= 0.0 {
            return Err(Failure::input(format!("every row of hook `{}` is zero", hook.name)));
        }
        let scale = self.train.input_norm.scale(set.stats(), set.d_in());
        Ok(Side { set, scale })
    }

    fn session<'a>(&self, context: &Context, job: &'a Job) -> Result<Session<'a>> {
        let (plan, train) = (&job.plan, &self.train);
        let keep = train.keep_checkpoints as usize;
        let checkpoints = Checkpoints::new(&job.run_dir, keep);
        let ema = plan.optimiser.ema.is_some();
        let blank = State::new(Parameters::zeros(plan.shape), plan.dead_after, ema);
        let (state, marks) = match checkpoints.load(blank)? {
            Some((state, marks)) => {
                tracing::info!("going on at step {} of {}", state.step, plan.schedule.steps);
                (state, marks)
            }
            None => {
                let first = self.first_parameters(job);
                (State::new(first, plan.dead_after, ema), Marks::default())
            }
        };
        let curves = Curves::open(&job.run_dir, self.about(context, job), marks)?;
        let (objective, optimiser) = (train.objective(plan)?, plan.optimiser.clone());
        let trainer = Trainer::new(state, objective, optimiser, plan.centred, plan.precision);
        Ok(Session {
            plan,
            rows: &job.rows,
            seed: train.seed,
            every: Intervals {
                log: train.log_every,
                validate: (train.validate_every > 0).then_some(train.validate_every),
                checkpoint: train.checkpoint_every,
            },
            checkpoints,
            curves,
            trainer,
            mirror: None,
            spent: Duration::ZERO,
            steps: 0,
            lap: (0, Instant::now()),
            evaluation: None,
        })
    }

    /// What the page of curves says besides.
    fn about(&self, context: &Context, job: &Job) -> CurvesAbout {
        let shape = job.plan.shape;
        let to = job.target.as_ref().map_or(String::new(), |hook| format!(" to {}", hook.name));
        let sae = format!(
            "{:?}, {} latents, d_in {}",
            self.train.sae_arch,
            thousands(shape.d_sae as u64),
            shape.d_in
        );
        CurvesAbout {
            title: job.run_id.clone(),
            steps: job.plan.schedule.steps,
            facts: vec![
                ("capture", job.capture.run_id.clone()),
                ("model", job.capture.model.id.clone()),
                ("hook", format!("{}{to}", job.hook.name)),
                ("SAE", sae),
            ],
            settings: context.config.scientific(),
        }
    }

    fn first_parameters(&self, job: &Job) -> Parameters {
        let mut sample = vec![];
        job.rows.output().gather(&job.rows.sample(self.train.seed), &mut sample);
        let tied = job.target.is_none();
        let threshold = self.train.sparsity.init_threshold as f32;
        initialise(job.plan.shape, &sample, self.train.seed, Start { tied, threshold })
    }

    fn finish(&self, context: &Context, mut session: Session<'_>, job: &Job) -> Result<()> {
        let plan = &job.plan;
        let evaluation = session.evaluation.take().unwrap_or_else(|| session.evaluate());
        session.save()?;
        session.curves.finish()?;
        // Rows are stored times ACTIVATION_SCALE; the SAE is for the model's own activations.
        let stored = job.capture.activation_scale;
        let scale = job.rows.input.scale;
        let sae = session.sae().folded(scale * stored, job.rows.output().scale * stored);
        let about = About {
            metadata: job.metadata(),
            target: job.target.as_ref().map(|hook| hook.transformer_lens.clone()),
            frequency: evaluation.frequency(),
        };
        saelens::save(&job.run_dir, &sae, about)?;
        let seconds = session.spent.as_secs_f64();
        let rate = (session.steps * plan.step_rows()) as f64 / seconds.max(1e-9);
        atomic::write_json(
            &job.run_dir.join("timing.json"),
            &json!({ "steps": session.steps, "seconds": seconds, "tokens_per_second": rate }),
        )?;
        let meta = TrainingMeta {
            schema: SCHEMA,
            run_id: job.run_id.clone(),
            capture_run_id: job.capture.run_id.clone(),
            hook: job.hook.name.clone(),
            target_hook: job.target.as_ref().map(|hook| hook.name.clone()),
            d_in: plan.shape.d_in,
            d_sae: plan.shape.d_sae,
            steps: plan.schedule.steps,
            tokens: plan.schedule.steps * plan.step_rows(),
            input_scale: scale,
            validation: evaluation.figures,
            config: context.config.scientific(),
        };
        atomic::write_json(&job.run_dir.join("meta.json"), &meta)?;
        job.publish(session.mirror.as_mut())?;
        let (figures, dead) = (evaluation.figures, session.trainer.state().firing.dead_fraction());
        tracing::info!(
            "trained `{}`: FVU {:.4}, L0 {:.1}, {:.1} % dead, in {}",
            job.run_id,
            figures.fvu,
            figures.l0,
            100.0 * dead,
            job.run_dir.display()
        );
        Ok(())
    }
}

impl Job {
    /// Makes the complete training the newest, in the remote store too.
    fn publish(&self, mirror: Option<&mut Mirror>) -> Result<()> {
        if let Some(mirror) = mirror {
            mirror.push()?;
        }
        self.reader.publish(Pointer::Training, &self.run_id)?;
        self.reader.store().publish(Pointer::Training, &self.run_id)
    }

    fn claim(&self, context: &Context) -> Claim {
        Claim {
            capture_run_id: self.capture.run_id.clone(),
            capture_manifest: self.manifest.clone(),
            hook: self.hook.name.clone(),
            target_hook: self.target.as_ref().map(|hook| hook.name.clone()),
            config: context.config.scientific(),
        }
    }

    /// What SAELens and its users look for in `cfg.json`.
    fn metadata(&self) -> Map<String, serde_json::Value> {
        let values = self.capture.config.values();
        let setting = |name: &str| values.get(name).copied().flatten();
        let value = json!({
            "sae_lens_version": "6.0.0",
            "model_name": self.capture.model.id,
            "hook_name": self.hook.transformer_lens,
            "hf_hook_name": self.hook.name,
            "dataset_path": self.capture.dataset.source,
            "context_size": setting("max_length").and_then(|n| n.parse::<u64>().ok()),
            // The tokenizer decides about BOS; SAELens' own default is to add it.
            "exclude_special_tokens": setting("keep_special") == Some("false"),
        });
        value.as_object().cloned().unwrap_or_default()
    }
}
