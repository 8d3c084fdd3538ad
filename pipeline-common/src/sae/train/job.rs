//! One SAE to train: what on, with which settings, under which name; how it begins and ends.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::{Map, json};

use super::{
    record::{Claim, SCHEMA, TrainingMeta},
    session::{Intervals, Resampling, Session, Spent},
    stage::SubjectArgs,
};
use crate::{
    capture::{CaptureMeta, meta::HookRecord},
    remote::{Reader, mirror::Mirror},
    sae::{
        Parameters,
        checkpoint::Checkpoints,
        curves::{self, Curves, Marks},
        formats::saelens::{self, About},
        history::Validation,
        rows::{Rows, Side},
        settings::{InputNorm, Plan},
        trainer::{State, Trainer},
        variant::Losses,
    },
    shard::{ShardSet, format, reader::MANIFEST},
    stage::{
        CommonArgs, Context, Failure, Result, atomic, lock::Lock, progress::thousands,
        store::Pointer,
    },
};

/// What is trained under which name; its rows are not opened yet.
pub struct Subject {
    /// What is asked for.
    pub settings: SubjectArgs,
    /// With the settings' origins.
    pub context: Context,
    /// Finds the store's runs.
    pub reader: Reader,
    /// What the rows were captured from.
    pub capture: CaptureMeta,
    capture_dir: PathBuf,
    /// blake3 of the capture's manifest.
    manifest: String,
    /// The hook whose rows are encoded.
    pub hook: HookRecord,
    /// A transcoder's target.
    pub target: Option<HookRecord>,
    /// The training's name.
    pub run_id: String,
    /// Its directory, which need not exist.
    pub run_dir: PathBuf,
}

/// A subject with its rows.
pub struct Job {
    /// What is trained.
    pub subject: Subject,
    /// On what.
    pub rows: Rows,
    /// The settings, for these rows.
    pub plan: Plan,
}

/// What decides a training's batches.
#[derive(Debug, PartialEq)]
pub struct Feed<'a> {
    hooks: (&'a str, Option<&'a str>),
    input_norm: InputNorm,
    validation: f64,
    data_seed: u64,
    /// Rows a batch, batches a step.
    step: (usize, u32),
}

impl Subject {
    /// Finds the capture. The run is called SAE_RUN_ID, with `name` behind it where it is one of
    /// several; without SAE_RUN_ID the settings name it.
    ///
    /// # Errors
    /// A usage failure for hooks that the capture does not have; an input failure without a
    /// complete capture.
    pub fn new(
        common: &CommonArgs,
        settings: SubjectArgs,
        context: Context,
        name: Option<&str>,
    ) -> Result<Self> {
        let reader = settings.reader.reader(common)?;
        let (capture_id, capture_dir) = reader.find(common.run_id.as_deref(), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&capture_dir)?;
        let hook = capture.hook(settings.hook.as_deref())?.clone();
        let target = settings.target_hook.as_deref().map(|name| capture.hook(Some(name)));
        let target = target.transpose()?.cloned();
        let manifest = format::digest(&capture_dir.join(MANIFEST)).map_err(Failure::from)?.0;
        let run_id = match (&settings.sae_run_id, name) {
            (Some(run), Some(name)) => format!("{run}-{name}"),
            (Some(run), None) => run.clone(),
            (None, _) => {
                let config = context.config.scientific();
                let values = format!("{capture_id} {manifest} {} {:?}", hook.name, config.values());
                format!("sae-{}-{}", hook.directory, &blake3::hash(values.as_bytes()).to_hex()[..8])
            }
        };
        let run_dir = reader.store().run_dir(&run_id, Pointer::Training)?;
        Ok(Self {
            settings,
            context,
            reader,
            capture,
            capture_dir,
            manifest,
            hook,
            target,
            run_id,
            run_dir,
        })
    }

    /// Opens the rows, copying them to this node where that is wanted.
    ///
    /// # Errors
    /// A usage failure for settings that do not fit the rows or contradict each other; rows that
    /// cannot be read.
    pub fn open(self) -> Result<Job> {
        let train = &self.settings.train;
        let input = self.side(&self.hook)?;
        let target = self.target.as_ref().map(|hook| self.side(hook)).transpose()?;
        let rows = Rows::new(input, target, train.validation)?;
        let d_out = rows.target.as_ref().map(|side| side.set.d_in());
        if self.settings.skip && d_out.is_none() {
            return Err(Failure::usage("SKIP is set, but TARGET_HOOK is not")
                .hint("a linear path around the latents would make an autoencoder trivial"));
        }
        let plan = train.plan(rows.input.set.d_in(), d_out, self.settings.skip, rows.training())?;
        // Of several SAEs the last one's settings, too, are looked at before the first is trained.
        train.objective(&plan)?;
        Ok(Job { subject: self, rows, plan })
    }

    /// The hook, and that of a transcoder's target.
    pub fn hooks(&self) -> String {
        let to = self.target.as_ref().map_or(String::new(), |hook| format!(" to {}", hook.name));
        format!("{}{to}", self.hook.name)
    }

    /// Fetches the training from the remote store, if there is one that has it.
    ///
    /// # Errors
    /// Those of the remote store; I/O errors.
    pub fn fetch(&self) -> Result<()> {
        let mirror = self.reader.mirror(&self.run_id, &self.run_dir);
        Ok(mirror.map_or(Ok(()), |mirror| mirror.pull())?)
    }

    fn side(&self, hook: &HookRecord) -> Result<Side> {
        let (id, dir) = (&self.capture.run_id, &self.capture_dir);
        let dir = self.reader.stage(&self.context, id, dir, &hook.name)?;
        let set = ShardSet::open(&dir, &hook.name)?;
        if set.stats().rms_norm() <= 0.0 {
            return Err(Failure::input(format!("every row of hook `{}` is zero", hook.name)));
        }
        let scale = self.settings.train.input_norm.scale(set.stats(), set.d_in());
        Ok(Side { set, scale })
    }

    /// Makes the run's directory this process' own and writes down what it is of. Its lock and what
    /// keeps it in the remote store; none where the training is complete already.
    ///
    /// # Errors
    /// [`Failure::stopped`] where another process trains it; a usage failure for other settings
    /// than it was begun with; I/O errors.
    pub fn begin(&self) -> Result<Option<(Lock, Option<Mirror>)>> {
        let (run_id, run_dir) = (&self.run_id, &self.run_dir);
        let mut mirror = self.reader.mirror(run_id, run_dir);
        if let Some(mirror) = &mirror {
            mirror.pull()?;
        }
        // Before anything is written there: SAE_RUN_ID may name a capture.
        let done = TrainingMeta::read(run_dir)?;
        fs_err::create_dir_all(run_dir)?;
        let lock = Lock::take(&run_dir.join("train.lock"), &format!("training run `{run_id}`"))?;
        self.claim().agree(&self.context, run_dir, run_id)?;
        if done.is_some() {
            tracing::info!("training run `{run_id}` is complete already");
            self.publish(mirror.as_mut())?;
            return Ok(None);
        }
        Ok(Some((lock, mirror)))
    }

    fn claim(&self) -> Claim {
        Claim {
            capture_run_id: self.capture.run_id.clone(),
            capture_manifest: self.manifest.clone(),
            hook: self.hook.name.clone(),
            target_hook: self.target.as_ref().map(|hook| hook.name.clone()),
            config: self.context.config.scientific(),
        }
    }

    /// Makes the complete training the newest, in the remote store too.
    ///
    /// # Errors
    /// I/O errors; those of the remote store.
    pub fn publish(&self, mirror: Option<&mut Mirror>) -> Result<()> {
        if let Some(mirror) = mirror {
            mirror.push()?;
        }
        self.reader.publish(Pointer::Training, &self.run_id)?;
        self.reader.store().publish(Pointer::Training, &self.run_id)
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

impl Job {
    /// Decides the order of the rows.
    pub fn data_seed(&self) -> u64 {
        let train = &self.subject.settings.train;
        train.data_seed.unwrap_or(train.seed)
    }

    /// What decides the batches.
    pub fn feed(&self) -> Feed<'_> {
        let (subject, train) = (&self.subject, &self.subject.settings.train);
        Feed {
            hooks: (&subject.hook.name, subject.target.as_ref().map(|hook| hook.name.as_str())),
            input_norm: train.input_norm,
            validation: train.validation,
            data_seed: self.data_seed(),
            step: (self.plan.batch, self.plan.accumulate),
        }
    }

    /// The training as its last checkpoint has it, or from the start.
    ///
    /// # Errors
    /// A checkpoint or curves that were damaged; I/O errors.
    pub fn session(&self, mirror: Option<Mirror>) -> Result<Session<'_>> {
        let (plan, train) = (&self.plan, &self.subject.settings.train);
        let run_dir = &self.subject.run_dir;
        let checkpoints = Checkpoints::new(run_dir, train.keep_checkpoints as usize);
        let (state, marks) = self.state(&checkpoints)?;
        let curves = Curves::open(run_dir, self.about(), marks)?;
        let (objective, optimiser) = (train.objective(plan)?, plan.optimiser.clone());
        Ok(Session {
            plan,
            rows: &self.rows,
            data_seed: self.data_seed(),
            every: Intervals {
                log: train.log_every,
                validate: (train.validate_every > 0).then_some(train.validate_every),
                checkpoint: train.checkpoint_every,
            },
            resampling: (train.resample_every > 0).then_some(Resampling {
                every: train.resample_every,
                threshold: train.sparsity.init_threshold as f32,
                seed: train.seed,
            }),
            checkpoints,
            curves,
            trainer: Trainer::new(state, objective, optimiser, plan.centred, plan.precision),
            mirror,
            spent: Spent::default(),
            lap: Spent::default(),
            saved: Instant::now(),
            sums: (Losses::default(), 0.0),
            evaluation: None,
        })
    }

    fn state(&self, checkpoints: &Checkpoints) -> Result<(State, Marks)> {
        let plan = &self.plan;
        let ema = plan.optimiser.ema.is_some();
        let blank = State::new(Parameters::zeros(plan.shape), plan.dead_after, ema);
        if let Some((state, marks)) = checkpoints.load(blank)? {
            let (run_id, steps) = (&self.subject.run_id, plan.schedule.steps);
            tracing::info!("`{run_id}`: going on at step {} of {steps}", state.step);
            return Ok((state, marks));
        }
        let first = State::new(self.first_parameters(), plan.dead_after, ema);
        Ok((first, Marks::default()))
    }

    fn first_parameters(&self) -> Parameters {
        let mut sample = vec![];
        self.rows.output().gather(&self.rows.sample(self.data_seed()), &mut sample);
        self.subject.settings.train.first_parameters(&self.plan, &sample)
    }

    /// What the page of curves says besides.
    fn about(&self) -> curves::About {
        let (subject, shape) = (&self.subject, self.plan.shape);
        let latents = thousands(shape.d_sae as u64);
        let architecture = subject.settings.train.sae_arch;
        curves::About {
            title: subject.run_id.clone(),
            steps: self.plan.schedule.steps,
            facts: vec![
                ("capture", subject.capture.run_id.clone()),
                ("model", subject.capture.model.id.clone()),
                ("hook", subject.hooks()),
                ("SAE", format!("{architecture:?}, {latents} latents, d_in {}", shape.d_in)),
            ],
            settings: subject.context.config.scientific(),
        }
    }

    /// Writes the SAE and what came of the training, once all steps are made.
    ///
    /// # Errors
    /// I/O errors; those of the remote store.
    pub fn finish(&self, session: &mut Session<'_>) -> Result<()> {
        let run_dir = &self.subject.run_dir;
        let evaluation = session.evaluation.take().unwrap_or_else(|| session.evaluate());
        session.save()?;
        session.curves.finish()?;
        // Rows are stored times ACTIVATION_SCALE; the SAE is for the model's own activations.
        let stored = self.subject.capture.activation_scale;
        let (input, output) = (self.rows.input.scale, self.rows.output().scale);
        let sae = session.sae().folded(input * stored, output * stored);
        let about = About {
            metadata: self.subject.metadata(),
            target: self.subject.target.as_ref().map(|hook| hook.transformer_lens.clone()),
            frequency: evaluation.frequency(),
        };
        saelens::save(run_dir, &sae, about)?;
        write_timing(run_dir, session.spent, self.plan.step_rows())?;
        let figures = evaluation.figures;
        atomic::write_json(&run_dir.join("meta.json"), &self.meta(figures))?;
        self.subject.publish(session.mirror.as_mut())?;
        tracing::info!(
            "trained `{}`: FVU {:.4}, L0 {:.1}, {:.1} % dead, in {}",
            self.subject.run_id,
            figures.fvu,
            figures.l0,
            100.0 * session.trainer.state().firing.dead_fraction(),
            run_dir.display()
        );
        Ok(())
    }

    fn meta(&self, validation: Validation) -> TrainingMeta {
        let (subject, plan) = (&self.subject, &self.plan);
        TrainingMeta {
            schema: SCHEMA,
            run_id: subject.run_id.clone(),
            capture_run_id: subject.capture.run_id.clone(),
            hook: subject.hook.name.clone(),
            target_hook: subject.target.as_ref().map(|hook| hook.name.clone()),
            d_in: plan.shape.d_in,
            d_sae: plan.shape.d_sae,
            steps: plan.schedule.steps,
            tokens: plan.schedule.steps * plan.step_rows(),
            input_scale: self.rows.input.scale,
            validation,
            config: subject.context.config.scientific(),
        }
    }
}

/// How fast this process was.
fn write_timing(run_dir: &Path, spent: Spent, step_rows: u64) -> Result<()> {
    let seconds = spent.time.as_secs_f64();
    let rate = (spent.steps * step_rows) as f64 / seconds.max(1e-9);
    let timing = json!({ "steps": spent.steps, "seconds": seconds, "tokens_per_second": rate });
    Ok(atomic::write_json(&run_dir.join("timing.json"), &timing)?)
}
