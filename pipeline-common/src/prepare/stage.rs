//! What to prepare, and what to say about it.

use std::path::{Path, PathBuf};

use askama::Template;
use clap::Parser;

use super::{
    examine::Examination,
    record::{self, Prepared, SCHEMA, Written},
    report::{Check, PAGE, Report, TEXT},
    survey::{Survey, survey},
    write,
};
use crate::{
    model::{self, ModelInfo, ModelRecord},
    remote::{RemoteRun, args::RemoteArgs},
    stage::{
        CommonArgs, Context, Failure, Result, Stage, atomic,
        lock::Lock,
        meta::META,
        progress::{bytes, thousands},
        store::{Pointer, Store, derived_name},
    },
    text::{
        ContextArgs, Contexts, DataArgs, Dataset, Hub, HubArgs, ModelArgs, RowArgs, Streams,
        Tokenizer, args::Split, streams::FILE as STREAMS,
    },
};

/// Bytes of a line of a stream besides its text.
const LINE: u64 = 12;

/// Shares above which the report warns.
const MANY_TRUNCATED: f64 = 0.5;
const MANY_UNKNOWN: f64 = 0.01;

const EXAMPLES: &str = "\
Examples:
  MODEL_ID=configs/demo/model HF_DATASET=configs/demo/text/demo.jsonl RUN_ID=demo 00_prepare_data
  HF_DATASET=roneneldan/TinyStories DATA_LIMIT=0 WORKERS=16 00_prepare_data --check
  SPLIT=sentence RUN_ID=sentences 00_prepare_data
  PROMPT_TEMPLATE=chat HF_DATASET=chats.jsonl TEXT_FIELD=messages 00_prepare_data

01_save_activations with the same RUN_ID goes on from here, without network and without further
settings of model and text.";

/// Fetches model and text, cuts the text into streams, and reports how it becomes tokens.
///
/// Writes STORE_DIR/runs/RUN_ID/streams/, one file per worker of 01_save_activations with about
/// the same work each, and tokenisation.txt and .html: what the tokenizer makes of a sample. Run
/// it again after an interruption: streams that are written are kept.
#[derive(Parser, Debug)]
#[command(name = "00_prepare_data", version, after_help = EXAMPLES)]
pub struct PrepareData {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    contexts: ContextArgs,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// What is written.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Streams to write, one for each worker of the capture
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Documents that are tokenised for the report, spread evenly
    #[arg(long, env, default_value_t = 200, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    report_sample: u32,
}

/// Everything resolved and opened.
struct Job {
    store: Store,
    run_dir: PathBuf,
    record: Prepared,
    vocabulary: usize,
    tokenizer: Tokenizer,
    dataset: Dataset,
    contexts: Contexts,
    remote: Option<RemoteRun>,
}

impl Stage for PrepareData {
    const SECTION: &'static str = "prepare_data";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let mut job = self.open(context, true)?;
        fs_err::create_dir_all(&job.run_dir)?;
        let lock = job.run_dir.join("prepare.lock");
        let _lock = Lock::take(&lock, &format!("the preparation of run `{}`", job.record.run_id))?;
        if let Some(done) = job.stored(context)?.filter(|stored| stored.written.is_some()) {
            tracing::info!("run `{}` is prepared already", done.run_id);
            job.push()?;
            context.print(&job.summary(&done));
            return Ok(());
        }
        let survey = self.survey(&job, context)?;
        let report = self.report(&job, &survey)?;
        job.record.write(&job.run_dir)?;
        let streams = Streams::balanced(&survey.weights, u64::from(self.output.workers));
        // The lock makes this process the only writer: one name that the next start replaces.
        if !job.run_dir.join(STREAMS).exists() {
            atomic::write_json(&job.run_dir.join(STREAMS), &streams)?;
        }
        streams.agree(&job.run_dir)?;
        let files = write::write(&job.run_dir, &streams, &job.dataset, &job.contexts, context)?;
        write_report(&job.run_dir, &report)?;
        job.record.written =
            Some(Written { contexts: survey.contexts, empty: survey.empty, streams: files });
        job.record.write(&job.run_dir)?;
        job.push()?;
        warn(&report);
        context.print(&job.summary(&job.record));
        Ok(())
    }

    fn check(&self, context: &Context) -> Result<()> {
        let job = self.open(context, false)?;
        job.stored(context)?;
        let survey = self.survey(&job, context)?;
        let report = self.report(&job, &survey)?;
        warn(&report);
        let record = &job.record;
        let streams = Streams::balanced(&survey.weights, u64::from(self.output.workers));
        context.print(&format!(
            "run        {}\nmodel      {} at {}\ndocuments  {}, {} of them empty\ncontexts   {}\n\
             streams    {} {}\ndisk       about {}\n",
            record.run_id,
            record.model.id,
            record.model.revision,
            thousands(record.dataset.documents),
            thousands(survey.empty),
            thousands(survey.contexts),
            streams.count,
            sizes(&streams),
            bytes(survey.text_bytes + LINE * record.dataset.documents),
        ));
        Ok(())
    }
}

impl PrepareData {
    fn open(&self, context: &Context, weights: bool) -> Result<Job> {
        self.rows.check()?;
        let hub = Hub::new(&self.hub);
        let snapshot = hub.model_dir(&self.model.model_id, &self.model.revision, weights)?;
        let info = ModelInfo::from_dir(&snapshot.dir)?;
        if weights || snapshot.commit.is_none() {
            model::headers(&snapshot.dir)?;
        }
        let tokenizer = Tokenizer::load(&snapshot.dir)?.adding_special(!self.contexts.chat());
        tokenizer.check_vocabulary(info.vocab_size)?;
        let contexts = Contexts::new(&self.contexts, &snapshot.dir)?;
        let dataset = Dataset::open(&self.data.spec(&self.contexts, &context.config), &hub)?;
        let mut record = Prepared {
            schema: SCHEMA,
            run_id: String::new(),
            model: ModelRecord::new(&self.model.model_id, &snapshot, &info, &tokenizer),
            dataset: dataset.record(&self.data.hf_dataset)?,
            chat_template: contexts.template().map(|template| template.fingerprint()),
            config: context.config.scientific(),
            written: None,
        };
        record.run_id = self.common.run_id.clone().unwrap_or_else(|| {
            let settings = (&record.model, &record.dataset, record.config.values());
            derived_name(&record.model.id, &format!("{settings:?}"))
        });
        let store = Store::new(self.common.store_root());
        let run_dir = store.run_dir(&record.run_id, Pointer::Capture)?;
        let client = self.remote.connect(&self.common)?;
        let remote = client.map(|client| RemoteRun::new(client, &record.run_id));
        let vocabulary = info.vocab_size;
        Ok(Job { store, run_dir, record, vocabulary, tokenizer, dataset, contexts, remote })
    }

    fn survey(&self, job: &Job, context: &Context) -> Result<Survey> {
        let sample = u64::from(self.output.report_sample);
        survey(&job.dataset, &job.contexts, self.contexts.max_length, sample, context)
    }

    fn report(&self, job: &Job, survey: &Survey) -> Result<Report> {
        let (length, rows) = (self.contexts.max_length, self.rows.choice());
        let sample = Examination::of(&survey.sample, &job.contexts, &job.tokenizer, length, rows)?;
        Ok(Report {
            title: job.record.run_id.clone(),
            facts: self.facts(job, survey),
            checks: checks(job, survey, &sample),
            unit: self.unit(),
            max_length: self.contexts.max_length.into(),
            sample,
        })
    }

    fn unit(&self) -> &'static str {
        match self.contexts.split {
            Split::Document => "documents",
            Split::Sentence => "sentences",
        }
    }

    fn facts(&self, job: &Job, survey: &Survey) -> Vec<(&'static str, String)> {
        let (model, dataset) = (&job.record.model, &job.record.dataset);
        let commit = dataset.revision.as_deref().unwrap_or("local");
        let special = match (self.rows.keep_special, self.rows.keep_bos) {
            (true, _) => "get rows",
            (false, true) => "get no rows, but for BOS",
            (false, false) => "get no rows",
        };
        vec![
            ("model", format!("{} at {}", model.id, model.revision)),
            (
                "tokenizer",
                format!("{} tokens, blake3 {}", job.tokenizer.vocab_size(), &model.tokenizer[..16]),
            ),
            ("dataset", format!("{} at {commit}, split {}", dataset.source, self.data.data_split)),
            ("documents", thousands(dataset.documents)),
            ("contexts", format!("{} {}", thousands(survey.contexts), self.unit())),
            ("MAX_LENGTH", format!("{} tokens", self.contexts.max_length)),
            ("special tokens", special.into()),
            ("first positions", format!("{} of each context get no rows", self.rows.drop_first)),
        ]
    }
}

impl Job {
    /// Uploads what was written, if there is somewhere to upload it.
    fn push(&self) -> Result<()> {
        self.remote.as_ref().map_or(Ok(()), |remote| record::push(&self.run_dir, remote))
    }

    /// What an earlier start recorded, checked to be the same preparation.
    fn stored(&self, context: &Context) -> Result<Option<Prepared>> {
        let mine = &self.record;
        let Some(stored) = Prepared::read(&self.run_dir)? else {
            if self.run_dir.join(META).exists() {
                let what = format!("run `{}` was captured without being prepared", mine.run_id);
                return Err(Failure::usage(what)
                    .hint("go on with 01_save_activations, or give RUN_ID a new name"));
            }
            return Ok(None);
        };
        context.config.must_match(&stored.config, &stored.run_id, "RUN_ID")?;
        let parts = |p: &Prepared| {
            let template = p.chat_template.as_deref().unwrap_or("none");
            [
                ("model", format!("{:?}", p.model)),
                ("dataset", format!("{:?}", p.dataset)),
                ("chat template", template.to_owned()),
            ]
        };
        let mut pairs = parts(&stored).into_iter().zip(parts(mine));
        let Some(((what, before), (_, now))) = pairs.find(|(before, now)| before != now) else {
            return Ok(Some(stored));
        };
        Err(Failure::usage(format!(
            "run `{}` was prepared from {what} {before}, now it is {now}",
            stored.run_id
        ))
        .hint("restore it, or give RUN_ID a new name"))
    }

    /// What was written, and the command that goes on from it.
    fn summary(&self, record: &Prepared) -> String {
        let files = record.written.iter().flat_map(|w| &w.streams);
        let size: u64 = files.clone().map(|f| f.file.bytes).sum();
        let count = files.count();
        let (dir, store) = (self.run_dir.display(), self.store.root().display().to_string());
        let settings = format!("RUN_ID={} STORE_DIR={}", record.run_id, quoted(&store));
        let next = match count {
            1 => format!("{settings} 01_save_activations"),
            n => format!("{settings} sbatch --array=0-{} slurm/submit_save_activations.sh", n - 1),
        };
        format!(
            "run        {}\nstreams    {count} with {} documents, {}\nreport     {dir}/{PAGE}\nnext       {next}\n",
            record.run_id,
            thousands(record.dataset.documents),
            bytes(size),
        )
    }
}

/// What the sample gives reason to look at. What makes the capture impossible is an error before.
fn checks(job: &Job, survey: &Survey, sample: &Examination) -> Vec<Check> {
    let contexts = sample.lengths.len().max(1) as f64;
    let (truncated, unknown) = (
        sample.truncated as f64 / contexts,
        sample.unknown_tokens as f64 / sample.tokens().max(1) as f64,
    );
    let many = truncated > MANY_TRUNCATED;
    let template = job.contexts.template();
    let conversations = template.map_or_else(
        || "PROMPT_TEMPLATE=none: the text is taken as it stands".to_owned(),
        |t| format!("conversations are rendered with the chat template of {}", t.file().display()),
    );
    vec![
        Check::new(
            true,
            format!(
                "the tokenizer's {} tokens fit the model's vocabulary of {}",
                thousands(job.tokenizer.vocab_size() as u64),
                thousands(job.vocabulary as u64)
            ),
        ),
        Check::new(true, conversations),
        Check::new(
            survey.empty == 0,
            format!(
                "{} of {} documents are empty",
                thousands(survey.empty),
                thousands(job.record.dataset.documents)
            ),
        ),
        Check::new(
            !many,
            format!(
                "{:.1} % are longer than MAX_LENGTH{}",
                100.0 * truncated,
                if many { ": a higher one, or SPLIT=sentence, cuts off less" } else { "" }
            ),
        ),
        Check::new(
            unknown <= MANY_UNKNOWN,
            format!(
                "{:.2} % of the tokens stand for something that the vocabulary does not have",
                100.0 * unknown
            ),
        ),
    ]
}

fn warn(report: &Report) {
    for check in report.checks.iter().filter(|check| !check.ok) {
        tracing::warn!("{}", check.said);
    }
}

fn write_report(run_dir: &Path, report: &Report) -> Result<()> {
    atomic::write(&run_dir.join(TEXT), report.text().as_bytes())?;
    let page = report.render().map_err(std::io::Error::other)?;
    Ok(atomic::write(&run_dir.join(PAGE), page.as_bytes())?)
}

/// `of 10 documents`, or `of 9 to 11 documents`.
fn sizes(streams: &Streams) -> String {
    let size = |i| streams.range(i).end - streams.range(i).start;
    let sizes = || (0..streams.count).map(size);
    let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    match (thousands(least), thousands(most)) {
        (least, most) if least == most => format!("of {most} documents"),
        (least, most) => format!("of {least} to {most} documents"),
    }
}

/// A path as a shell reads it back.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%:".contains(c);
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}
