//! What to capture, and what it will cost.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::DType;
use clap::{Parser, ValueEnum, builder::BoolishValueParser};

use super::{
    flow::{self, Source, check_vocabulary},
    meta::{CaptureMeta, DatasetRecord, HookRecord, ModelRecord, SCHEMA},
    worker::{self, Target, Worker},
};
use crate::{
    kernels::product::{Matrix, Write, product},
    model::{self, Hook, HookArgs, ModelInfo, flops_per_token},
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Result, Stage,
        lock::Lock,
        progress::{bytes, clock, thousands},
        store::{Pointer, Store},
    },
    text::{DataArgs, Dataset, Hub, HubArgs, ModelArgs, Snapshot, Streams, tokenizer::Tokenizer},
};

/// Documents that `--check` tokenises to estimate the rest.
const SAMPLE: u64 = 200;

const EXAMPLES: &str = "\
Examples:
  MODEL_ID=configs/demo/model HF_DATASET=configs/demo/text/demo.jsonl 01_save_activations
  LAYER_NUM=8 HOOK=resid_post 01_save_activations --check
  LAYERS=4,8,12 HOOK=resid_mid,mlp_out 01_save_activations --data-limit 100000
  HOOK=model.layers.16.post_attention_layernorm 01_save_activations
  sbatch --array=0-7 slurm/submit_save_activations.sh      eight workers, one stream each";

/// Saves a model's activations on a dataset as memory-mapped f16 shards.
///
/// Runs each document through the model up to the deepest hook and writes one row per token under
/// STORE_DIR/runs/. Run it again after an interruption: it goes on behind the last committed
/// shard.
#[derive(Parser, Debug)]
#[command(name = "01_save_activations", version, after_help = EXAMPLES)]
pub struct SaveActivations {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    capture: CaptureArgs,
}

/// How documents become rows.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Capture")]
struct CaptureArgs {
    /// Tokens a document is cut to, special tokens included
    #[arg(long, env, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_length: u32,
    /// Documents a forward pass
    #[arg(long, env, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size_save: u32,
    /// What the model computes in
    #[arg(long, env, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Keep rows of BOS and other special tokens
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    keep_special: bool,
    /// Activations are multiplied by this before they are stored as f16
    #[arg(long, env, default_value_t = 1.0, value_parser = scale)]
    activation_scale: f32,
    /// Size of a shard in MiB
    #[arg(long, env, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    shard_mib: u32,
    /// This worker, from 0 [default: the job array's task, else 0]
    #[arg(long, env)]
    worker: Option<usize>,
    /// Workers that share the documents [default: the job array's size, else 1]
    #[arg(long, env)]
    workers: Option<usize>,
}

/// Number formats of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// 32-bit.
    F32,
    /// 16-bit with f32's range; for GPUs.
    Bf16,
    /// 16-bit; for GPUs.
    F16,
}

impl Precision {
    const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

fn scale(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// Everything resolved and opened, before the model's weights.
struct Job {
    store: Store,
    meta: CaptureMeta,
    run_dir: PathBuf,
    snapshot: Snapshot,
    info: ModelInfo,
    hooks: Vec<Hook>,
    tokenizer: Tokenizer,
    dataset: Dataset,
    share: Share,
}

impl Stage for SaveActivations {
    const SECTION: &'static str = "save_activations";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let job = self.open(context, true)?;
        if let Some(done) = self.claim(context, &job)? {
            tracing::info!(
                "run `{}` is complete already: {} rows",
                done.run_id,
                thousands(done.totals.unwrap_or_default().rows)
            );
            return job.store.publish(Pointer::Capture, &done.run_id);
        }
        let streams = Streams::split(job.dataset.len(), job.share.count as u64);
        streams.agree(&job.run_dir)?;
        let stream = streams.range(job.share.index as u64);
        let worker = Worker::claim(self.target(&job), job.share, stream)?;
        self.capture(context, &job, worker)?;
        let streams: Vec<Range<u64>> = (0..streams.count).map(|i| streams.range(i)).collect();
        finish(job, &streams)
    }

    fn check(&self, context: &Context) -> Result<()> {
        let job = self.open(context, false)?;
        let documents = job.dataset.len();
        let texts = job
            .dataset
            .documents(0..SAMPLE)?
            .map(|d| d.map(|d| d.text))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let encodings = job.tokenizer.encode_batch(&texts, self.capture.max_length as usize)?;
        let sampled: usize = encodings.iter().map(|e| e.ids.len()).sum();
        let kept: usize = encodings
            .iter()
            .map(|e| e.special.iter().filter(|s| self.capture.keep_special || !**s).count())
            .sum();
        let per_document = sampled as f64 / texts.len() as f64;
        let tokens = per_document * documents as f64;
        let rows = kept as f64 / texts.len() as f64 * documents as f64;
        let flop: f64 = tokens
            * job
                .hooks
                .iter()
                .map(|h| flops_per_token(&job.info, h, per_document))
                .fold(0.0, f64::max);
        let width: usize = job.meta.hooks.iter().map(|h| h.d_in).sum();
        let rate = product_rate(context.threads);
        let hours = std::time::Duration::from_secs_f64(flop / rate / job.share.count as f64);
        let names: Vec<&str> = job.meta.hooks.iter().map(|h| h.name.as_str()).collect();
        context.print(&format!(
            "run        {}\nmodel      {} ({}, {} layers)\nhooks      {}\ndocuments  {} in {} streams\n\
             tokens     about {} to compute, {} to keep (from {} documents)\ndisk       about {}\n\
             arithmetic {flop:.2e} FLOP\ntime       about {} a worker at the {:.0} GFLOP/s of products measured here\n",
            job.meta.run_id,
            job.meta.model.id,
            job.info.architecture,
            job.info.n_layers,
            names.join(", "),
            thousands(documents),
            job.share.count,
            thousands(tokens as u64),
            thousands(rows as u64),
            texts.len(),
            bytes((rows * (width * 2 + 20) as f64) as u64),
            clock(hours),
            rate / 1e9,
        ));
        Ok(())
    }
}

impl SaveActivations {
    fn open(&self, context: &Context, weights: bool) -> Result<Job> {
        let share = context.slurm.share(self.capture.worker, self.capture.workers)?;
        let hub = Hub::new(&self.hub);
        let snapshot = hub.model_dir(&self.model.model_id, &self.model.revision, weights)?;
        let info = ModelInfo::from_dir(&snapshot.dir)?;
        // A check of a model on the hub does not fetch its weights.
        if weights || snapshot.commit.is_none() {
            model::headers(&snapshot.dir)?;
        }
        let hooks = self.hooks.resolve(&info, context.config.given("layer_num"))?;
        let tokenizer = Tokenizer::load(&snapshot.dir)?;
        check_vocabulary(&tokenizer, info.vocab_size)?;
        let dataset = Dataset::open(&self.data.spec(), &hub)?;
        let store = Store::new(self.common.store_root());
        let mut meta = CaptureMeta {
            schema: SCHEMA,
            run_id: String::new(),
            model: ModelRecord {
                id: self.model.model_id.clone(),
                revision: snapshot.commit.clone().unwrap_or_else(|| "local".into()),
                architecture: info.architecture.clone(),
                tokenizer: tokenizer.fingerprint().to_owned(),
            },
            hooks: hooks.iter().map(|h| record(h, &info)).collect(),
            dataset: DatasetRecord {
                source: self.data.hf_dataset.clone(),
                documents: dataset.len(),
                fingerprint: dataset.fingerprint()?,
            },
            workers: share.count,
            activation_scale: self.capture.activation_scale,
            config: context.config.scientific(),
            totals: None,
        };
        meta.run_id = self.common.run_id.clone().unwrap_or_else(|| meta.default_name());
        let run_dir = store.run_dir(&meta.run_id, Pointer::Capture)?;
        Ok(Job { store, meta, run_dir, snapshot, info, hooks, tokenizer, dataset, share })
    }

    /// Records what the run is at its first start, compares at every later one; returns the
    /// record of a run that is complete.
    fn claim(&self, context: &Context, job: &Job) -> Result<Option<CaptureMeta>> {
        let stored = match CaptureMeta::read(&job.run_dir)? {
            Some(stored) => stored,
            None => {
                fs_err::create_dir_all(&job.run_dir)?;
                let _lock = run_lock(&job.run_dir)?;
                let Some(stored) = CaptureMeta::read(&job.run_dir)? else {
                    job.meta.write(&job.run_dir)?;
                    return Ok(None);
                };
                stored
            }
        };
        context.config.must_match(&stored.config, &stored.run_id, "RUN_ID")?;
        job.meta.must_match(&stored)?;
        Ok(stored.totals.is_some().then_some(stored))
    }

    fn target(&self, job: &Job) -> Target {
        let meta = &job.meta;
        let pairs = [
            ("model", &meta.model.id),
            ("revision", &meta.model.revision),
            ("tokenizer_blake3", &meta.model.tokenizer),
            ("run", &meta.run_id),
        ];
        Target {
            run_dir: job.run_dir.clone(),
            hooks: meta.hooks.clone(),
            scale: self.capture.activation_scale,
            shard_bytes: u64::from(self.capture.shard_mib) << 20,
            metadata: pairs.map(|(k, v)| (k.to_owned(), v.clone())).to_vec(),
        }
    }

    fn capture(&self, context: &Context, job: &Job, mut worker: Worker) -> Result<()> {
        let left = worker.left();
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = job.meta.hooks.iter().map(|h| h.name.as_str()).collect();
        tracing::info!(
            "run `{}`: documents {}..{} of {}, hooks {}",
            job.meta.run_id,
            left.start,
            left.end,
            job.dataset.len(),
            names.join(", ")
        );
        if !self.capture.keep_special {
            tracing::info!("BOS and other special tokens get no rows (KEEP_SPECIAL=1 keeps them)");
        }
        let device = model::device(&self.common.device)?;
        let model =
            model::load(&job.snapshot.dir, &job.hooks, &device, self.capture.dtype.dtype())?;
        let source = Source {
            dataset: &job.dataset,
            tokenizer: &job.tokenizer,
            max_length: self.capture.max_length as usize,
            batch_size: u64::from(self.capture.batch_size_save),
            keep_special: self.capture.keep_special,
        };
        flow::run(source, model.as_ref(), &job.hooks, &mut worker, context)?;
        if worker.left().is_empty() {
            return Ok(());
        }
        let left = worker.left();
        context.leave_if_asked(&format!("{} documents left", left.end - left.start))
    }
}

/// Held while a worker writes files that belong to the whole run.
fn run_lock(run_dir: &Path) -> Result<Lock> {
    Lock::wait(&run_dir.join("run.lock"))
}

/// Completes the run if this was the last stream.
fn finish(mut job: Job, streams: &[Range<u64>]) -> Result<()> {
    let Some(lines) = worker::all_committed(&job.run_dir, streams)? else {
        tracing::info!("stream {} is done, others are not", job.share.index);
        return Ok(());
    };
    let _lock = run_lock(&job.run_dir)?;
    // Of several that end at once one completes the run.
    if CaptureMeta::read(&job.run_dir)?.is_some_and(|meta| meta.totals.is_some()) {
        tracing::info!("stream {} is done, another worker completed the run", job.share.index);
        return Ok(());
    }
    let (totals, statistics) = worker::complete(&job.run_dir, &lines)?;
    for (hook, statistics) in job.meta.hooks.iter_mut().zip(statistics) {
        hook.statistics = Some(statistics);
    }
    job.meta.totals = Some(totals);
    job.meta.write(&job.run_dir)?;
    job.store.publish(Pointer::Capture, &job.meta.run_id)?;
    tracing::info!(
        "run `{}` is complete: {} rows in {} shards, {}",
        job.meta.run_id,
        thousands(totals.rows),
        totals.shards,
        job.run_dir.display()
    );
    Ok(())
}

fn record(hook: &Hook, info: &ModelInfo) -> HookRecord {
    HookRecord {
        name: hook.module_path(info),
        transformer_lens: hook.transformer_lens(info),
        alias: hook.point.alias().map(str::to_owned),
        directory: hook.signature(info).replace(['#', '/'], "_"),
        d_in: hook.width(info),
        statistics: None,
    }
}

/// FLOP/s of f32 products on this machine now, from a short probe.
fn product_rate(threads: usize) -> f64 {
    const N: usize = 768;
    let (a, b) = (vec![0.5_f32; N * N], vec![0.25_f32; N * N]);
    let mut out = vec![0.0; N * N];
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let began = Instant::now();
        product(Matrix::new(&a, N, N), Matrix::new(&b, N, N), &mut out, Write::Replace, threads);
        best = best.max(2.0 * (N * N * N) as f64 / began.elapsed().as_secs_f64());
    }
    best
}

impl CaptureMeta {
    /// A name made from what is captured: the same capture finds its run again.
    fn default_name(&self) -> String {
        let model = self.model.id.rsplit('/').find(|part| !part.is_empty()).unwrap_or("model");
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let settings = format!("{:?} {:?} {:?}", self.model, self.dataset, self.config.values());
        let digest = blake3::hash(settings.as_bytes()).to_hex();
        format!(
            "{}-{}",
            model.chars().map(plain).collect::<String>().trim_start_matches('.'),
            &digest[..8]
        )
    }

    /// Refuses to go on where model, text or workers are not those the run was begun with.
    fn must_match(&self, stored: &Self) -> Result<()> {
        let differ = |what: &str, before: String, now: String| {
            Err(Failure::usage(format!(
                "run `{}` was begun with {what} {before}, now it is {now}",
                stored.run_id
            ))
            .hint("restore it, or give RUN_ID a new name"))
        };
        if self.model != stored.model {
            return differ("model", format!("{:?}", stored.model), format!("{:?}", self.model));
        }
        if self.dataset != stored.dataset {
            return differ(
                "dataset",
                format!("{:?}", stored.dataset),
                format!("{:?}", self.dataset),
            );
        }
        if self.workers != stored.workers {
            return differ("WORKERS", stored.workers.to_string(), self.workers.to_string());
        }
        Ok(())
    }
}
