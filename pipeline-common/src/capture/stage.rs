//! What to capture, and the run it belongs to.

use std::{cell::OnceCell, ops::Range};

use clap::Parser;

use super::{
    args::CaptureArgs,
    check,
    flow::{self, Source},
    meta::{CaptureMeta, HookRecord, SCHEMA},
    policy::{HookLimit, NormLimit, Overflow, PolicyArgs, Rows, median_norm},
    run::{Run, run_lock},
    verify_model,
    worker::{Target, Worker},
};
use crate::{
    model::{self, Hook, HookArgs, HookedModel, ModelInfo, ModelRecord},
    prepare::{self, PreparedRun},
    remote::{Client, RemoteRun, Stream, UploadArgs},
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Kind, Reporter, Result, Stage, atomic,
        progress::thousands,
        store::{Pointer, Store},
    },
    text::{
        ContextArgs, Contexts, DataArgs, Dataset, DatasetRecord, Hub, HubArgs, ModelArgs, Snapshot,
        Streams, streams::FILE, tokenizer::Tokenizer,
    },
};

const EXAMPLES: &str = "\
Examples:
  MODEL_ID=configs/demo/model HF_DATASET=configs/demo/text/demo.jsonl 01_save_activations
  LAYER_NUM=8 HOOK=resid_post 01_save_activations --check
  LAYERS=4,8,12 HOOK=resid_mid,mlp_out 01_save_activations --data-limit 100000
  LAYERS=0-11:3 HOOK='*hook_resid_*' 01_save_activations          patterns, in every third layer
  HOOK=model.layers.16.post_attention_layernorm 01_save_activations
  KEEP_BOS=1 DROP_NORM_ABOVE=10x 01_save_activations --verify-model
  RUN_ID=stories 01_save_activations            what 00_prepare_data prepared under this name
  sbatch --array=0-7 slurm/submit_save_activations.sh      eight workers, one stream each";

/// Saves a model's activations on a dataset as memory-mapped f16 shards.
///
/// Runs each document through the model up to the deepest hook and writes one row per token under
/// STORE_DIR/runs/. Run it again after an interruption: it goes on behind the last committed
/// shard. A run that 00_prepare_data prepared is captured from its streams, with its settings.
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
    contexts: ContextArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    pub(super) capture: CaptureArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    upload: UploadArgs,
}

/// Everything resolved and opened, before the model's weights.
pub(super) struct Job {
    pub run: Run,
    pub snapshot: Snapshot,
    pub info: ModelInfo,
    pub hooks: Vec<Hook>,
    pub tokenizer: Tokenizer,
    pub text: Text,
    pub prepared: Option<PreparedRun>,
    pub share: Share,
    /// Which tokens get rows.
    pub rows: Rows,
    /// As deep as `hooks` need, once it was asked for.
    model: OnceCell<Box<dyn HookedModel>>,
}

/// The documents, and what they are cut into.
pub(super) struct Text {
    pub dataset: Dataset,
    contexts: Contexts,
    record: DatasetRecord,
}

impl Stage for SaveActivations {
    const SECTION: &'static str = "save_activations";
    const RUN_DEFAULTS: Option<&'static str> = Some(prepare::record::FILE);

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let mut job = self.open(context, true)?;
        if self.capture.verify_model {
            context.print(&verify_model::verify(self, &job)?);
        }
        let uploaded = job.run.agree(context)?;
        job.run.meta = job.run.claim(context, || self.begin(&job))?;
        if let Some(policy) = &job.run.meta.policy {
            job.rows = policy.rows();
        }
        if let Some(totals) = job.run.meta.totals.filter(|_| uploaded) {
            tracing::info!(
                "run `{}` is complete already: {} rows",
                job.run.meta.run_id,
                thousands(totals.rows)
            );
            if job.run.remote.is_none() {
                self.tidy(context, &job)?;
            }
            return job.run.publish();
        }
        let streams = match &job.prepared {
            Some(prepared) => prepared.streams.clone(),
            None => Streams::split(job.text.dataset.len(), job.share.count as u64),
        };
        {
            let _lock = run_lock(&job.run.dir)?;
            atomic::sweep(&job.run.dir)?;
            streams.agree(&job.run.dir)?;
        }
        if let Some(remote) = &job.run.remote {
            remote.agree(FILE, &fs_err::read(job.run.dir.join(FILE))?)?;
        }
        let stream = streams.range(job.share.index as u64);
        let keep = self.upload.keep(&self.common);
        let uploads = |run: RemoteRun| Stream::open(run, job.share.index, &job.run.dir, keep);
        let uploads = job.run.remote.clone().map(uploads).transpose()?;
        let reporter = Reporter::new(context, &job.run.dir, Self::SECTION, job.share);
        reporter.watch(|| {
            let mut worker =
                Worker::claim(self.target(&job), job.share, stream, uploads, &context.stop)?;
            self.capture(context, &job, &mut worker, &reporter)?;
            worker.finish_uploads()?;
            if worker.left().is_empty() {
                return Ok(());
            }
            context.leave_if_asked(&format!("{} documents left", worker.documents_left()))
        })?;
        let streams: Vec<Range<u64>> = (0..streams.count).map(|i| streams.range(i)).collect();
        job.run.finish(job.share.index, &streams)
    }

    fn check(&self, context: &Context) -> Result<()> {
        let job = self.open(context, self.capture.verify_model)?;
        if self.capture.verify_model {
            context.print(&verify_model::verify(self, &job)?);
        }
        check::check(self, &job, context)
    }
}

impl SaveActivations {
    fn open(&self, context: &Context, weights: bool) -> Result<Job> {
        self.policy.tokens.check()?;
        let share = context.slurm.share(self.capture.worker, self.capture.workers)?;
        let hub = Hub::new(&self.hub);
        let store = Store::new(self.common.store_root());
        let client = self.upload.connect(&self.common)?;
        let prepared = self.prepared(context, &store, client.as_ref(), share)?;
        let commit = prepared.as_ref().and_then(|p| p.record.model.commit());
        let revision = commit.unwrap_or(&self.model.revision);
        let snapshot = hub.model_dir(&self.model.model_id, revision, weights)?;
        let info = ModelInfo::from_dir(&snapshot.dir)?;
        // A check of a model on the hub does not fetch its weights.
        if weights || snapshot.commit.is_none() {
            model::headers(&snapshot.dir)?;
        }
        let hooks = self.hooks.resolve(&info, context.config.given("layer_num"))?;
        let tokenizer = Tokenizer::load(&snapshot.dir)?.adding_special(!self.contexts.chat());
        tokenizer.check_vocabulary(info.vocab_size)?;
        let model = ModelRecord::new(&self.model.model_id, &snapshot, &info, &tokenizer);
        let text = self.text(context, prepared.as_ref(), &hub, &snapshot, &model)?;
        let policy = self.policy.record(self.contexts.max_length, self.capture.activation_scale);
        let rows = policy.rows();
        let mut meta = CaptureMeta {
            schema: SCHEMA,
            run_id: String::new(),
            model,
            hooks: hooks.iter().map(|h| record(h, &info)).collect(),
            dataset: text.record.clone(),
            workers: share.count,
            activation_scale: self.capture.activation_scale,
            policy: Some(policy),
            config: context.config.scientific(),
            totals: None,
        };
        meta.run_id = self.common.run_id.clone().unwrap_or_else(|| meta.default_name());
        let run_dir = store.run_dir(&meta.run_id, Pointer::Capture)?;
        let remote = client.map(|client| RemoteRun::new(client, &meta.run_id));
        Ok(Job {
            run: Run::new(store, meta, run_dir, remote),
            snapshot,
            info,
            hooks,
            tokenizer,
            text,
            prepared,
            share,
            rows,
            model: OnceCell::new(),
        })
    }

    /// The run's streams where there are any, else the dataset.
    fn text(
        &self,
        context: &Context,
        prepared: Option<&PreparedRun>,
        hub: &Hub,
        snapshot: &Snapshot,
        model: &ModelRecord,
    ) -> Result<Text> {
        if let Some(prepared) = prepared {
            prepared.must_match(model)?;
            return Ok(Text {
                dataset: prepared.dataset()?,
                contexts: Contexts::of_rendered(self.contexts.split),
                record: prepared.record.dataset.clone(),
            });
        }
        let contexts = Contexts::new(&self.contexts, &snapshot.dir)?;
        let dataset = Dataset::open(&self.data.spec(&self.contexts, &context.config), hub)?;
        let record = dataset.record(&self.data.hf_dataset)?;
        Ok(Text { dataset, contexts, record })
    }

    /// The run's streams, if RUN_ID names one that 00 has prepared.
    fn prepared(
        &self,
        context: &Context,
        store: &Store,
        client: Option<&Client>,
        share: Share,
    ) -> Result<Option<PreparedRun>> {
        let Some(run_id) = &self.common.run_id else { return Ok(None) };
        let run_dir = store.run_dir(run_id, Pointer::Capture)?;
        if let Some(client) = client {
            fs_err::create_dir_all(&run_dir)?;
            let _lock = run_lock(&run_dir)?;
            prepare::record::pull(&run_dir, &RemoteRun::new(client.clone(), run_id))?;
        }
        let Some(prepared) = PreparedRun::open(&run_dir)? else { return Ok(None) };
        let mut config = prepared.record.config.clone();
        if !context.config.given("workers") {
            // The job array's size, compared below.
            config.0.remove("workers");
        }
        context.config.must_match(&config, run_id, "RUN_ID")?;
        let (streams, workers) = (prepared.streams.count, share.count);
        if streams != workers as u64 {
            let what = format!("run `{run_id}` was prepared for {streams} workers, not {workers}");
            return Err(Failure::usage(what)
                .hint("submit an array of that size, or prepare again under a new RUN_ID"));
        }
        prepared.verify(share.index)?;
        Ok(Some(prepared))
    }

    /// The job's documents and how they become rows.
    pub(super) fn source<'a>(&self, job: &'a Job) -> Source<'a> {
        Source {
            dataset: &job.text.dataset,
            contexts: &job.text.contexts,
            tokenizer: &job.tokenizer,
            max_length: self.contexts.max_length as usize,
            batch_size: u64::from(self.capture.batch_size_save),
            rows: &job.rows,
        }
    }

    /// Loads the model as deep as `hooks` need.
    pub(super) fn load(&self, job: &Job, hooks: &[Hook]) -> Result<Box<dyn HookedModel>> {
        let device = model::device(&self.common.device)?;
        Ok(model::load(&job.snapshot.dir, hooks, &device, self.capture.dtype.dtype())?)
    }

    /// The model as deep as the job's hooks need, loaded once.
    fn model<'a>(&self, job: &'a Job) -> Result<&'a dyn HookedModel> {
        if let Some(model) = job.model.get() {
            return Ok(model.as_ref());
        }
        let model = self.load(job, &job.hooks)?;
        Ok(job.model.get_or_init(|| model).as_ref())
    }

    /// What a run is begun with: the largest norm of each hook is settled here, and every worker
    /// reads it from `meta.json`.
    fn begin(&self, job: &Job) -> Result<CaptureMeta> {
        let mut meta = job.run.meta.clone();
        let Some(setting) = self.policy.drop_norm_above else { return Ok(meta) };
        let limits = match setting {
            NormLimit::Absolute(limit) => {
                let of =
                    |h: &HookRecord| HookLimit { hook: h.name.clone(), median_norm: None, limit };
                meta.hooks.iter().map(of).collect()
            }
            NormLimit::Median(factor) => self.median_limits(job, factor)?,
        };
        if let Some(norm) = meta.policy.as_mut().and_then(|policy| policy.norm.as_mut()) {
            norm.limits = limits;
        }
        Ok(meta)
    }

    /// Multiples of each hook's median norm over the dataset's first batch.
    fn median_limits(&self, job: &Job, factor: f64) -> Result<Vec<HookLimit>> {
        let source = self.source(job);
        let first = source.tokenise(0..source.batch_size)?;
        let batch = flow::compute(source, self.model(job)?, &job.hooks, first)?;
        let limit = |(hook, rows): (&HookRecord, &Vec<f32>)| {
            let median = median_norm(rows, hook.d_in)?;
            let limit = median * factor;
            Some(HookLimit { hook: hook.name.clone(), median_norm: Some(median), limit })
        };
        let limits: Option<_> = job.run.meta.hooks.iter().zip(&batch.rows).map(limit).collect();
        limits.ok_or_else(|| {
            let what = format!(
                "the first {} documents have no row to take the median of",
                source.batch_size
            );
            Failure::usage(what).hint("give DROP_NORM_ABOVE as a number, or raise BATCH_SIZE_SAVE")
        })
    }

    /// Clears away what killed processes left in a run that others completed meanwhile, as a claim
    /// of the stream does; not while another process has it.
    fn tidy(&self, context: &Context, job: &Job) -> Result<()> {
        {
            let _lock = run_lock(&job.run.dir)?;
            atomic::sweep(&job.run.dir)?;
        }
        let stream = Streams::load(&job.run.dir)?.range(job.share.index as u64);
        match Worker::claim(self.target(job), job.share, stream, None, &context.stop) {
            Err(e) if e.kind != Kind::Stopped => Err(e),
            _ => Ok(()),
        }
    }

    fn target(&self, job: &Job) -> Target {
        let meta = &job.run.meta;
        let pairs = [
            ("model", &meta.model.id),
            ("revision", &meta.model.revision),
            ("tokenizer_blake3", &meta.model.tokenizer),
            ("run", &meta.run_id),
        ];
        Target {
            run_dir: job.run.dir.clone(),
            hooks: meta.hooks.clone(),
            scale: self.capture.activation_scale,
            saturate: self.policy.f16_overflow == Overflow::Saturate,
            shard_bytes: u64::from(self.capture.shard_mib) << 20,
            metadata: pairs.map(|(k, v)| (k.to_owned(), v.clone())).to_vec(),
        }
    }

    fn capture(
        &self,
        context: &Context,
        job: &Job,
        worker: &mut Worker,
        reporter: &Reporter,
    ) -> Result<()> {
        let (all, left) = (worker.documents(), worker.documents_left());
        reporter.begin("documents", all - left, all);
        flow::report(worker, reporter);
        if worker.left().is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = job.run.meta.hooks.iter().map(|h| h.name.as_str()).collect();
        let ranges: Vec<String> = worker.left().iter().map(|range| format!("{range:?}")).collect();
        tracing::info!(
            "run `{}`: documents {} of {}, hooks {}",
            job.run.meta.run_id,
            ranges.join(" and "),
            thousands(job.text.dataset.len()),
            names.join(", ")
        );
        if let Some(words) = job.run.meta.policy.as_ref().and_then(|p| p.in_words()) {
            tracing::info!("{words}");
        }
        flow::run(self.source(job), self.model(job)?, &job.hooks, worker, context, reporter)
    }
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
