//! `--check`: what a capture will cost, measured on its first documents, and whether it fits.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use super::{
    flow::{QUEUE, compute, sentence},
    meta::HookRecord,
    stage::{Job, SaveActivations},
};
use crate::{
    kernels::product::product_rate,
    model::{self, Point, flops_per_token},
    shard::{Dropped, Tokens, format::PAGE},
    stage::{
        Context, Failure, Result, disk, memory,
        progress::{bytes, clock, thousands},
        time,
    },
};

/// Documents that are tokenised to estimate the rest.
const SAMPLE: u64 = 200;
/// Seconds of products that the probe of the forward pass may take.
const PROBE: f64 = 10.0;

/// The costs of a capture.
struct Plan {
    /// Documents of the sample.
    sampled: u64,
    /// Mean tokens of a sentence.
    length: f64,
    /// Tokens the model will see.
    tokens: f64,
    /// Rows of each hook; policies on norms may leave fewer.
    rows: f64,
    /// Bytes of all token files.
    token_bytes: u64,
    /// Shards of all workers.
    shards: u64,
    /// FLOP of the whole capture.
    flop: f64,
    /// FLOP a second of products here.
    product_rate: f64,
    /// Tokens a second of the forward pass here.
    probe: Option<f64>,
}

/// Prints the plan.
///
/// # Errors
/// What stops a capture before its first result; no room for its files.
pub fn check(stage: &SaveActivations, job: &Job, context: &Context) -> Result<()> {
    let plan = Plan::measure(stage, job)?;
    let mut table = Table::default();
    plan.describe(job, &mut table);
    plan.cost(stage, job, &mut table);
    let room = plan.room(job, &mut table)?;
    plan.wall_time(stage, job, context, &mut table);
    if let Some(remote) = &job.run.remote {
        remote.client().probe()?;
        table.line("upload", format!("{}, writable", remote.client().location()));
    }
    context.print(&table.0);
    match room {
        None => Ok(()),
        Some(lacking) => Err(Failure::unavailable(lacking)
            .hint("free space, point STORE_DIR elsewhere, or capture fewer hooks or documents")),
    }
}

/// Aligned lines of name and value.
#[derive(Default)]
struct Table(String);

impl Table {
    fn line(&mut self, name: &str, value: impl AsRef<str>) {
        let _infallible = writeln!(self.0, "{name:10} {}", value.as_ref());
    }
}

impl Plan {
    fn measure(stage: &SaveActivations, job: &Job) -> Result<Self> {
        let source = stage.source(job);
        let sample = source.tokenise(0..SAMPLE)?;
        let (mut tokens, mut seen, mut dropped) = (Tokens::new(), 0, Dropped::default());
        let sampled = sample.documents.end - sample.documents.start;
        let contexts = sample.texts.len();
        for (document, encoding) in sample.texts.into_iter().zip(sample.encodings) {
            if encoding.special.contains(&false) {
                seen += encoding.ids.len();
                let keep = job.rows.of_sentence(&encoding, &mut dropped);
                let (document, text, kept) = sentence((document, encoding), &keep);
                tokens.push(document, &text, kept);
            }
        }
        let all = job.text.dataset.len() as f64 / sampled.max(1) as f64;
        let length = seen as f64 / contexts.max(1) as f64;
        let deepest = |h| flops_per_token(&job.info, h, length);
        let flop_per_token = job.hooks.iter().map(deepest).fold(0.0, f64::max);
        let product_rate = product_rate();
        let rows = tokens.rows() as f64 * all;
        Ok(Self {
            sampled,
            length,
            tokens: seen as f64 * all,
            rows,
            token_bytes: (tokens.bytes() as f64 * all) as u64,
            shards: shards(stage, job, rows),
            flop: seen as f64 * all * flop_per_token,
            product_rate,
            probe: probe(stage, job, PROBE * product_rate / (length * flop_per_token).max(1.0))?,
        })
    }

    /// Bytes of a hook's shards.
    fn hook_bytes(&self, hook: &HookRecord) -> u64 {
        let d_in = hook.d_in as u64;
        (self.rows * 2.0 * d_in as f64) as u64 + self.shards * (PAGE as u64 + 8 * d_in)
    }

    fn bytes(&self, job: &Job) -> u64 {
        let hooks: u64 = job.run.meta.hooks.iter().map(|h| self.hook_bytes(h)).sum();
        hooks + self.tokens_bytes()
    }

    fn tokens_bytes(&self) -> u64 {
        self.token_bytes + self.shards * PAGE as u64
    }

    fn describe(&self, job: &Job, table: &mut Table) {
        let meta = &job.run.meta;
        let model = (&meta.model.id, &job.info.architecture, job.info.n_layers);
        table.line("run", &meta.run_id);
        table.line("model", format!("{} ({}, {} layers)", model.0, model.1, model.2));
        let hooks: Vec<&str> = meta.hooks.iter().map(|h| h.name.as_str()).collect();
        table.line("hooks", hooks.join(", "));
        table.line(
            "documents",
            format!("{} in {} streams", thousands(job.text.dataset.len()), job.share.count),
        );
        table.line(
            "tokens",
            format!(
                "about {} to compute, {} to keep (from {} documents)",
                thousands(self.tokens as u64),
                thousands(self.rows as u64),
                self.sampled
            ),
        );
        let policies = meta.policy.as_ref().and_then(|p| p.in_words());
        table.line("policies", policies.unwrap_or_else(|| "every token gets a row".into()));
    }

    fn cost(&self, stage: &SaveActivations, job: &Job, table: &mut Table) {
        table.line("disk", format!("about {} in all", bytes(self.bytes(job))));
        for hook in &job.run.meta.hooks {
            let size = bytes(self.hook_bytes(hook));
            table.line("", format!("{size:>10}  {} (d_in {})", hook.name, hook.d_in));
        }
        table.line("", format!("{:>10}  token files", bytes(self.tokens_bytes())));
        let each = job.run.meta.hooks.len() + 1;
        let files = thousands(self.shards * each as u64);
        table.line("files", format!("{files}: {} shards of {each}", thousands(self.shards)));
        table.line("arithmetic", format!("{:.2e} FLOP", self.flop));
        let queued = queued_bytes(stage, job, self.length);
        table.line(
            "memory",
            format!(
                "about {} of weights as deep as needed, {} in queues",
                bytes(weight_bytes(stage, job)),
                bytes(queued)
            ),
        );
    }

    /// What the disk and the quota say; what is lacking, if anything is.
    fn room(&self, job: &Job, table: &mut Table) -> Result<Option<String>> {
        let needed = self.bytes(job);
        let root = job.run.store.root();
        let free = disk::free(root)?;
        let verdict = |room: u64| if room >= needed { "ok" } else { "TOO SMALL" };
        table.line("free", format!("{} for `{}`: {}", bytes(free), root.display(), verdict(free)));
        let quota = disk::quota(root);
        table.line(
            "quota",
            quota.as_ref().map_or_else(
                || "none that quota or lfs quota knows of".to_owned(),
                |q| {
                    let (left, limit) = (bytes(q.left()), bytes(q.limit));
                    format!("{left} left of {limit} on {}: {}", q.file_system, verdict(q.left()))
                },
            ),
        );
        let lacking = |what: &str, room: u64| {
            let (needed, room) = (bytes(needed), bytes(room));
            format!("the capture needs about {needed}, {what} {room}")
        };
        Ok(match quota {
            _ if free < needed => Some(lacking("the file system has", free)),
            Some(q) if q.left() < needed => Some(lacking("the quota leaves", q.left())),
            _ => None,
        })
    }

    fn wall_time(&self, stage: &SaveActivations, job: &Job, context: &Context, table: &mut Table) {
        let workers = job.share.count as f64;
        let bound = Duration::from_secs_f64(self.flop / self.product_rate / workers);
        let bound = format!(
            "at least {} at the {:.0} GFLOP/s of products measured here",
            clock(bound),
            self.product_rate / 1e9
        );
        let Some(rate) = self.probe else {
            table.line("time", format!("{bound} (no probe of the model: its weights are not here, or do not fit the memory that is free)"));
            return;
        };
        let needed = Duration::from_secs_f64(self.tokens / rate / workers);
        table.line(
            "time",
            format!(
                "about {} a worker, {} tokens/s measured here",
                clock(needed),
                thousands(rate as u64)
            ),
        );
        table.line("", bound);
        let limit = stage.capture.time_limit.or_else(|| time::left(context.slurm.job_id));
        let verdict = match limit {
            None => "unknown outside a job: give TIME_LIMIT, or trust `#SBATCH --time`".to_owned(),
            Some(limit) if limit.0 >= needed => format!("{limit}: ok"),
            Some(limit) => {
                let more = (needed.as_secs_f64() / limit.0.as_secs_f64()).ceil() - 1.0;
                format!(
                    "{limit}: TOO SMALL, each worker will be queued again about {more} times and goes on"
                )
            }
        };
        table.line("time limit", verdict);
    }
}

/// Shards of all workers: a worker closes one behind the batch that brings its widest hook to
/// SHARD_MIB.
fn shards(stage: &SaveActivations, job: &Job, rows: f64) -> u64 {
    let widest = job.run.meta.hooks.iter().map(|h| h.d_in).max().unwrap_or(1);
    let documents = job.text.dataset.len() as f64;
    let batch = f64::from(stage.capture.batch_size_save);
    let batch_bytes = rows / documents.max(1.0) * batch * widest as f64 * 2.0;
    let shard = (u64::from(stage.capture.shard_mib) << 20) as f64;
    let batches_per_shard = (shard / batch_bytes.max(1.0)).ceil();
    let batches = (documents / job.share.count as f64 / batch).ceil();
    job.share.count as u64 * (batches / batches_per_shard).ceil().max(1.0) as u64
}

/// Tokens a second of the forward pass, over at most two batches and about `documents`; none
/// where the weights are not here or do not fit.
fn probe(stage: &SaveActivations, job: &Job, documents: f64) -> Result<Option<f64>> {
    let fits = memory::available().is_none_or(|free| weight_bytes(stage, job) < free);
    if model::headers(&job.snapshot.dir).is_err() || !fits {
        return Ok(None);
    }
    let source = stage.source(job);
    let batch = (documents as u64).clamp(1, source.batch_size);
    let model = stage.load(job, &job.hooks)?;
    let mut rate = None;
    // The first batch warms up; a dataset may have no second one.
    for first in [0, batch] {
        let tokenised = source.tokenise(first..first + batch)?;
        let began = Instant::now();
        let seen = compute(source, model.as_ref(), &job.hooks, tokenised)?.tokens_seen;
        if seen > 0 {
            rate = Some(seen as f64 / began.elapsed().as_secs_f64());
        }
    }
    Ok(rate)
}

/// Bytes of the weights down to the deepest hook, in the precision of the forward pass.
fn weight_bytes(stage: &SaveActivations, job: &Job) -> u64 {
    let info = &job.info;
    let blocks = job.hooks.iter().map(|h| h.blocks(info)).max().unwrap_or(0) as u64;
    let embedding = (info.vocab_size * info.d_model) as u64;
    let embeddings = if info.tied { embedding } else { 2 * embedding };
    let layer = info.parameters().saturating_sub(embeddings) / info.n_layers as u64;
    let head = !info.tied && job.hooks.iter().any(|h| h.point == Point::Logits);
    let head = if head { embedding } else { 0 };
    (embedding + blocks * layer + head) * stage.capture.dtype.dtype().size_in_bytes() as u64
}

/// Bytes of the batches between the threads, the one being computed and the one being written.
fn queued_bytes(stage: &SaveActivations, job: &Job, length: f64) -> u64 {
    let width: usize = job.run.meta.hooks.iter().map(|h| h.d_in).sum();
    let rows = length * f64::from(stage.capture.batch_size_save);
    (rows * width as f64 * size_of::<f32>() as f64) as u64 * (QUEUE as u64 + 2)
}
