//! Stage 02: shards to a sparse autoencoder.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Parser;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::{
    Parameters, Sae, SaeError,
    checkpoint::Checkpoints,
    evaluate::evaluate,
    formats::saelens,
    history::{History, Record},
    init::{MEDIAN_ROWS, initialise},
    settings::{Plan, TrainArgs},
    trainer::{Rates, State, Trainer},
    variant::Losses,
};
use crate::{
    capture::{CaptureMeta, meta::HookRecord},
    kernels::columns::row_variance,
    remote::{Reader, ReaderArgs, mirror::Mirror},
    shard::{Order, ShardSet, format, reader::MANIFEST},
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Reporter, ResolvedConfig, Result, Stage, atomic,
        lock::Lock,
        meta,
        progress::{bytes, thousands},
        store::Pointer,
    },
};

/// Version of a training run's `meta.json`.
const SCHEMA: u32 = 1;

const EXAMPLES: &str = "\
Examples:
  02_train_sae                                   train on the newest capture
  TOP_K=32 N_LATENTS_MULTIPLIER=8 02_train_sae   a wider, denser SAE
  02_train_sae --sae-arch jumprelu --l0-lambda 5e-4
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
    #[command(flatten)]
    reader: ReaderArgs,
}

/// What a training run says about itself, in `meta.json`; written last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainingMeta {
    /// Version of this file.
    pub schema: u32,
    /// The run's name.
    pub run_id: String,
    /// The capture it was trained on.
    pub capture_run_id: String,
    /// Hugging Face module path of the hook.
    pub hook: String,
    /// Width of the input.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Steps made.
    pub steps: u64,
    /// Rows trained on.
    pub tokens: u64,
    /// Stored rows were multiplied by this in training; it is folded into the weights, and so is
    /// the capture's ACTIVATION_SCALE.
    pub input_scale: f32,
    /// Figures on held-out rows, in units of the scaled input.
    pub validation: super::history::Validation,
    /// Every setting that decides the result, with its origin.
    pub config: ResolvedConfig,
}

impl TrainingMeta {
    /// Reads a run's file; `None` where there is none, that is, before the training is complete.
    ///
    /// # Errors
    /// As [`meta::read`].
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        meta::read(run_dir, SCHEMA, "a training run")
    }

    /// Reads the file of a run that must be complete.
    ///
    /// # Errors
    /// An input failure if it is missing; as [`meta::read`].
    pub fn read_complete(run_dir: &Path) -> Result<Self> {
        Self::read(run_dir)?.ok_or_else(|| {
            Failure::input(format!("training run `{}` is not complete", run_dir.display()))
                .hint("run 02_train_sae again until it exits with 0, or set SAE_RUN_ID")
        })
    }
}

/// What a training run was begun with, in `config.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    capture_run_id: String,
    /// blake3 of the capture's manifest, which has the digest of every row.
    capture_manifest: String,
    hook: String,
    config: ResolvedConfig,
}

/// The opened input and where the output goes.
struct Job {
    capture: CaptureMeta,
    /// blake3 of the capture's manifest.
    manifest: String,
    hook: HookRecord,
    set: ShardSet,
    train: Vec<Range<usize>>,
    held_out: Vec<usize>,
    plan: Plan,
    scale: f32,
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
        let (plan, threads) = (&job.plan, context.threads);
        let weights = 2 * plan.d_sae * plan.d_in * size_of::<f32>();
        // Parameters, two moments, gradients, and at the end a copy and its transpose; one batch
        // of inputs, errors and sparse latents.
        let memory = 11 * weights / 2 + 4 * plan.batch * plan.d_in * size_of::<f32>() + (48 << 20);
        let flop = 2.0
            * plan.batch as f64
            * plan.d_in as f64
            * plan.d_sae as f64
            * plan.schedule.steps as f64;
        // Two checkpoints of parameters and moments, a third while it is written, the result.
        let disk = 10 * weights;
        context.print(&format!(
            "run         {}\ncapture     {} ({} rows)\nhook        {} (d_in {})\nSAE         {}, d_sae {}\n\
             steps       {} of {} rows, {} held out\nmemory      {}\ndisk        {}\n\
             arithmetic  {:.3e} FLOP in encoder products alone, on {threads} threads\n",
            job.run_id,
            job.capture.run_id,
            thousands(job.set.rows() as u64),
            job.hook.name,
            plan.d_in,
            plan.activation,
            plan.d_sae,
            thousands(plan.schedule.steps),
            thousands(plan.batch as u64),
            thousands(job.held_out.len() as u64),
            bytes(memory as u64),
            bytes(disk as u64),
            flop,
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
        self.claim(context, &job)?;
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
            self.finish(context, session)
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
        let set = ShardSet::open(&capture_dir, &hook.name)?;
        let (train, held_out) = split(&set, self.train.validation)?;
        let train_rows = train.iter().map(ExactSizeIterator::len).sum();
        let plan = self.train.plan(set.d_in(), train_rows)?;
        let rms = set.stats().rms_norm();
        if rms <= 0.0 {
            return Err(Failure::input(format!("every row of hook `{}` is zero", hook.name)));
        }
        let manifest = format::digest(&capture_dir.join(MANIFEST)).map_err(Failure::from)?.0;
        let run_id = self.sae_run_id.clone().unwrap_or_else(|| {
            let settings = context.config.scientific();
            let values = format!("{capture_id} {manifest} {} {:?}", hook.name, settings.values());
            format!("sae-{}-{}", hook.directory, &blake3::hash(values.as_bytes()).to_hex()[..8])
        });
        let run_dir = reader.store().run_dir(&run_id, Pointer::Training)?;
        let scale = (1.0 / rms) as f32;
        Ok(Job {
            capture,
            manifest,
            hook,
            set,
            train,
            held_out,
            plan,
            scale,
            run_id,
            run_dir,
            reader,
        })
    }

    /// Records input and settings at the first start and compares them at every later one:
    /// without RUN_ID a newer capture may have taken the place of the first.
    fn claim(&self, context: &Context, job: &Job) -> Result<()> {
        let path = job.run_dir.join("config.json");
        let claim = Claim {
            capture_run_id: job.capture.run_id.clone(),
            capture_manifest: job.manifest.clone(),
            hook: job.hook.name.clone(),
            config: context.config.scientific(),
        };
        let stored: Claim = match fs_err::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(atomic::write_json(&path, &claim)?);
            }
            other => serde_json::from_slice(&other?)
                .map_err(|e| SaeError::Format { path, reason: e.to_string() })?,
        };
        if (&stored.capture_run_id, &stored.hook) != (&claim.capture_run_id, &claim.hook) {
            let what = format!(
                "training run `{}` was begun on hook {} of capture `{}`, now it is hook {} of `{}`",
                job.run_id, stored.hook, stored.capture_run_id, claim.hook, claim.capture_run_id
            );
            return Err(Failure::usage(what).hint(format!(
                "set RUN_ID={}, or give SAE_RUN_ID a new name",
                stored.capture_run_id
            )));
        }
        if stored.capture_manifest != claim.capture_manifest {
            let what = format!(
                "training run `{}` was begun on other rows: capture `{}` was made anew since",
                job.run_id, stored.capture_run_id
            );
            return Err(Failure::usage(what).hint("give SAE_RUN_ID a new name"));
        }
        context.config.must_match(&stored.config, &job.run_id, "SAE_RUN_ID")
    }

    fn session<'a>(&self, context: &Context, job: &'a Job) -> Result<Session<'a>> {
        let plan = &job.plan;
        let mut order = Order::new(self.train.seed, &job.train, plan.d_in * 2);
        let checkpoints = Checkpoints::new(&job.run_dir);
        let threshold = self.train.first_threshold();
        let shape = Parameters::zeros(plan.d_in, plan.d_sae, threshold.is_some());
        let state = match checkpoints.load(&shape, plan.dead_after)? {
            Some(state) => {
                tracing::info!("going on at step {} of {}", state.step, plan.schedule.steps);
                state
            }
            None => {
                let sample = job.sample(&mut order);
                State::new(
                    initialise(&sample, plan.d_in, plan.d_sae, self.train.seed, threshold),
                    plan.dead_after,
                )
            }
        };
        let history = History::open(&job.run_dir, state.step)?;
        let objective = self.train.objective(plan.d_in);
        let trainer = Trainer::new(state, objective, plan.adam, context.threads);
        let every = (self.train.log_every, self.train.checkpoint_every);
        Ok(Session {
            job,
            order,
            checkpoints,
            history,
            trainer,
            every,
            seconds: 0.0,
            steps: 0,
            mirror: None,
        })
    }

    fn finish(&self, context: &Context, mut session: Session<'_>) -> Result<()> {
        let (job, plan) = (session.job, &session.job.plan);
        session.save()?;
        let sae = Sae::new(session.trainer.state.params.clone(), plan.activation);
        let rows = job.evaluation_rows(&mut session.order);
        let evaluation = evaluate(&sae, &job.set, &rows, job.scale, context.threads);
        if let Some(last) = session.history.records.last_mut() {
            last.validation = Some(evaluation.figures);
        }
        session.history.write()?;
        let frequency: Vec<f64> =
            evaluation.fired.iter().map(|n| *n as f64 / rows.len() as f64).collect();
        // Rows are stored times ACTIVATION_SCALE; the SAE is for the model's own activations.
        let sae = sae.folded(job.scale * job.capture.activation_scale);
        saelens::save(&job.run_dir, &sae, job.metadata(), &frequency)?;
        atomic::write_json(
            &job.run_dir.join("timing.json"),
            &json!({
                "steps": session.steps, "seconds": session.seconds,
                "tokens_per_second": (session.steps as usize * plan.batch) as f64 / session.seconds.max(1e-9),
            }),
        )?;
        let meta = TrainingMeta {
            schema: SCHEMA,
            run_id: job.run_id.clone(),
            capture_run_id: job.capture.run_id.clone(),
            hook: job.hook.name.clone(),
            d_in: plan.d_in,
            d_sae: plan.d_sae,
            steps: plan.schedule.steps,
            tokens: plan.schedule.steps * plan.batch as u64,
            input_scale: job.scale,
            validation: evaluation.figures,
            config: context.config.scientific(),
        };
        atomic::write_json(&job.run_dir.join("meta.json"), &meta)?;
        job.publish(session.mirror.as_mut())?;
        let (figures, dead) = (evaluation.figures, session.trainer.state.firing.dead_fraction());
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

    /// The first rows of the first epoch, for the geometric median.
    fn sample(&self, order: &mut Order) -> Vec<f32> {
        let mut rows = vec![];
        order.batch(0, order.rows().min(MEDIAN_ROWS), &mut rows);
        let mut sample = vec![];
        self.gather(&rows, &mut sample);
        sample
    }

    /// Scaled rows, `[rows.len(), d_in]`.
    fn gather(&self, rows: &[usize], out: &mut Vec<f32>) {
        let d_in = self.set.d_in();
        out.resize(rows.len() * d_in, 0.0);
        let chunks = out.par_chunks_mut(d_in).zip(rows);
        chunks.for_each(|(out, row)| self.set.read_row(*row, self.scale, out));
    }

    /// The held-out rows, or a sample of the training rows where nothing is held out.
    fn evaluation_rows(&self, order: &mut Order) -> Vec<usize> {
        if !self.held_out.is_empty() {
            return self.held_out.clone();
        }
        let mut rows = vec![];
        order.batch(0, order.rows().min(MEDIAN_ROWS), &mut rows);
        rows
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

/// A training under way.
struct Session<'a> {
    job: &'a Job,
    order: Order,
    checkpoints: Checkpoints,
    history: History,
    trainer: Trainer,
    /// Steps between records, and between checkpoints.
    every: (u64, u64),
    seconds: f64,
    steps: u64,
    mirror: Option<Mirror>,
}

impl Session<'_> {
    fn train(&mut self, context: &Context, reporter: &Reporter) -> Result<()> {
        let plan = &self.job.plan;
        let progress = context.progress("training", plan.schedule.steps, "steps");
        let mut progress = progress.reported_by(reporter);
        let step = self.trainer.state.step;
        progress.resume_at(step, step * plan.batch as u64);
        let began = Instant::now();
        let (mut rows, mut batch, mut note) = (vec![], vec![], String::new());
        while self.trainer.state.step < plan.schedule.steps {
            let step = self.trainer.state.step;
            self.order.batch(step * plan.batch as u64, plan.batch, &mut rows);
            self.job.gather(&rows, &mut batch);
            let record = step.is_multiple_of(self.every.0) || step + 1 == plan.schedule.steps;
            let variance = record.then(|| row_variance(&batch, plan.d_in));
            let rates = Rates {
                lr: plan.lr * plan.schedule.lr(step),
                sparsity: plan.schedule.sparsity(step),
            };
            let losses = self.trainer.step(&mut batch, rates)?;
            if let Some(variance) = variance {
                let made = self.record(&losses, variance, rates.lr);
                note = format!("loss {:.4} FVU {:.4} L0 {:.1}", made.loss, made.fvu, made.l0);
                self.history.records.push(made);
            }
            self.steps += 1;
            self.seconds = began.elapsed().as_secs_f64();
            progress.advance(1, plan.batch as u64, &note);
            let stopping = context.stop.requested();
            if stopping || self.trainer.state.step.is_multiple_of(self.every.1) {
                self.save()?;
            }
            if stopping {
                let saved = format!(
                    "checkpoint at step {} of {}",
                    self.trainer.state.step, plan.schedule.steps
                );
                context.leave_if_asked(&saved)?;
            }
        }
        progress.finish(&note);
        Ok(())
    }

    /// The curve first: a resume cuts it back to the checkpoint's step.
    fn save(&mut self) -> Result<()> {
        self.history.write()?;
        self.checkpoints.save(&self.trainer.state)?;
        Ok(self.mirror.as_mut().map_or(Ok(()), Mirror::push)?)
    }

    fn record(&self, losses: &Losses, variance: f64, lr: f64) -> Record {
        let state = &self.trainer.state;
        let fvu = losses.mse / variance.max(f64::MIN_POSITIVE);
        Record {
            step: state.step,
            tokens: state.step * self.job.plan.batch as u64,
            loss: losses.total,
            mse: losses.mse,
            fvu,
            explained_variance: 1.0 - fvu,
            l0: losses.l0,
            l1: losses.l1,
            sparsity: losses.sparsity,
            aux: losses.aux,
            lr,
            dead_fraction: state.firing.dead_fraction(),
            validation: None,
        }
    }
}

/// Splits each shard by document: the last documents are held out, so that training rows stay
/// contiguous. Returns ranges to train on and rows to validate on.
fn split(set: &ShardSet, share: f64) -> Result<(Vec<Range<usize>>, Vec<usize>)> {
    let (mut train, mut held_out) = (vec![], vec![]);
    for shard in 0..set.shards() {
        let (first, end) = (set.first_row(shard), set.first_row(shard + 1));
        let cut = if share > 0.0 { first + first_held_out(set, shard, share)? } else { end };
        train.push(first..cut);
        held_out.extend(cut..end);
    }
    Ok((train, held_out))
}

/// The row of a shard at which its last `share` of documents begins.
fn first_held_out(set: &ShardSet, shard: usize, share: f64) -> Result<usize> {
    let tokens = set.tokens(shard)?;
    let mut starts: Vec<usize> = vec![];
    let mut last = None;
    for sentence in 0..tokens.sentences() {
        let document = tokens.document(sentence);
        if last.replace(document) != Some(document) {
            starts.push(tokens.sentence_rows(sentence).start);
        }
    }
    let keep = starts.len() - ((starts.len() as f64 * share).round() as usize).min(starts.len());
    Ok(starts.get(keep).copied().unwrap_or(tokens.rows()))
}
