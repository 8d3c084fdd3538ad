//! Stage 03 from its arguments to its files.

use std::io::Write;

use clap::Parser;

use super::{
    detail,
    input::Input,
    output::{Files, Pending},
    report::{Origin, Report},
    tally::Tally,
};
use crate::{
    remote::{Reader, ReaderArgs},
    sae::history::Record,
    slurm::Share,
    stage::{
        CommonArgs, Context, Reporter, Result, Stage,
        progress::{bytes, thousands},
    },
};

const EXAMPLES: &str = "\
Examples:
  03_top_sentences                      top sentences of the newest training
  TOP_N=25 03_top_sentences             longer lists
  SAE_RUN_ID=my-sae 03_top_sentences    of a certain training
  RUN_ID=other-text 03_top_sentences    on the activations of another capture
  03_top_sentences --check              what it would cost
  sbatch slurm/submit_top_sentences.sh  the same as a SLURM job";

/// Latents whose sentences are in memory together in the second read.
const LATENTS_AT_A_TIME: usize = 4096;

/// Finds the sentences that excite each latent most, and makes a report of them.
///
/// Reads the newest complete training (or SAE_RUN_ID) and the capture it was trained on (or
/// RUN_ID), and writes YAML, JSONL and report.html into the training run.
#[derive(Parser, Debug)]
#[command(name = "03_top_sentences", version, after_help = EXAMPLES)]
pub struct TopSentences {
    #[command(flatten)]
    common: CommonArgs,
    /// Training run to read [default: the newest complete one, in sae_run_id.txt]
    #[arg(long, env, value_name = "NAME")]
    sae_run_id: Option<String>,
    /// Sentences per latent and aggregation
    #[arg(long, env, default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    top_n: u16,
    #[command(flatten)]
    reader: ReaderArgs,
}

impl Stage for TopSentences {
    const SECTION: &'static str = "top_sentences";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let reader = self.reader.reader(&self.common)?;
        let input = self.open(context, &reader)?;
        let p = &input.sae.params;
        let weights = (p.w_enc.len() + p.w_dec.len()) * size_of::<f32>();
        let lists = p.d_sae * 3 * usize::from(self.top_n) * 16;
        let rows_per_sentence = input.set.rows() / (input.sentences().max(1) as usize);
        let pairs = p.d_sae * 3 * usize::from(self.top_n);
        // Per pair a token's text and a number of about ten digits, in the JSON lines.
        let disk = pairs * rows_per_sentence * 20;
        let block = pairs.min(LATENTS_AT_A_TIME * 3 * usize::from(self.top_n));
        let memory = weights + lists + block * (rows_per_sentence * 32 + 200) + (192 << 20);
        let flop = 2.0 * input.set.rows() as f64 * p.d_in as f64 * p.d_sae as f64;
        context.print(&format!(
            "training    {}\ncapture     {} ({} rows, {} sentences)\nhook        {} (d_in {})\n\
             latents     {}\nmemory      up to {}\ndisk        up to {}\n\
             arithmetic  {flop:.3e} FLOP on {} threads\n",
            input.training.run_id,
            input.capture.run_id,
            thousands(input.set.rows() as u64),
            thousands(input.sentences()),
            input.training.hook,
            p.d_in,
            thousands(p.d_sae as u64),
            bytes(memory as u64),
            bytes(disk as u64),
            context.threads,
        ));
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let reader = self.reader.reader(&self.common)?;
        let input = self.open(context, &reader)?;
        let reporter = Reporter::new(context, &input.store_run, Self::SECTION, Share::WHOLE);
        reporter.watch(|| {
            reporter.begin("sentences", 0, input.sentences());
            self.find(context, &input, &reader, &reporter)
        })
    }
}

impl TopSentences {
    fn find(
        &self,
        context: &Context,
        input: &Input,
        reader: &Reader,
        reporter: &Reporter,
    ) -> Result<()> {
        let tally = self.tally(context, input, reporter)?;
        let dir = input.store_run.join("top_sentences");
        let mut files = Files::create(&dir)?;
        let mut report = Report::new(origin(input), &tally, self.top_n.into());
        let d_sae = tally.latents().len();
        for begin in (0..d_sae).step_by(LATENTS_AT_A_TIME) {
            context.leave_if_asked("nothing is written before the end")?;
            let latents = begin..(begin + LATENTS_AT_A_TIME).min(d_sae);
            let details = detail::read(input, &tally, latents.clone())?;
            for latent in latents {
                files.write(latent, &tally, &details)?;
                report.add(latent, &tally, &details);
            }
        }
        let path = dir.join("report.html");
        let mut page = Pending::create(path.clone())?;
        page.write_all(report.render()?.as_bytes())?;
        files.commit()?;
        page.commit()?;
        if let Some(mut mirror) = reader.mirror(&input.training.run_id, &input.store_run) {
            mirror.push_directory("top_sentences")?;
        }
        let active = tally.latents().iter().filter(|l| l.fired > 0).count();
        tracing::info!("{active} of {d_sae} latents are active; report: {}", path.display());
        context.print(&format!("{}\n", path.display()));
        Ok(())
    }

    fn open(&self, context: &Context, reader: &Reader) -> Result<Input> {
        Input::open(reader, self.sae_run_id.as_deref(), self.common.run_id.as_deref(), context)
    }

    /// The first pass, in chunks of whole sentences.
    fn tally(&self, context: &Context, input: &Input, reporter: &Reporter) -> Result<Tally> {
        let mut tally = Tally::new(input.sae.params.d_sae, self.top_n.into());
        let mut encoder = input.sae.encoder();
        let progress = context.progress("top sentences", input.sentences(), "sentences");
        let mut progress = progress.reported_by(reporter);
        for shard in 0..input.set.shards() {
            let tokens = input.tokens(shard)?;
            let first = input.set.first_row(shard);
            let mut begin = 0;
            while begin < tokens.sentences() {
                context.leave_if_asked("nothing is written before the end")?;
                let start = tokens.sentence_rows(begin).start;
                let fits = |s: &usize| tokens.sentence_rows(*s).end - start <= input.chunk_rows();
                let count = (begin..tokens.sentences()).take_while(fits).count().max(1);
                let end = tokens.sentence_rows(begin + count - 1).end;
                let range = first + start..first + end;
                let active = input.encode(&mut encoder, std::slice::from_ref(&range));
                for sentence in begin..begin + count {
                    let rows = tokens.sentence_rows(sentence);
                    let rows = (rows.start - start..rows.end - start).map(|row| active.row(row));
                    tally.add(input.starts[shard] + sentence as u64, rows);
                }
                begin += count;
                progress.advance(count as u64, range.len() as u64, "");
            }
        }
        progress.finish("");
        Ok(tally)
    }
}

/// What the report says about where it comes from.
fn origin(input: &Input) -> Origin {
    let (training, capture) = (&input.training, &input.capture);
    let facts = vec![
        ("training run", training.run_id.clone()),
        ("capture run", capture.run_id.clone()),
        ("model", format!("{} ({})", capture.model.id, capture.model.revision)),
        ("hook", training.hook.clone()),
        ("dataset", capture.dataset.source.clone()),
        ("documents", thousands(capture.dataset.documents)),
        ("SAE", format!("{}, d_in {}", input.sae.activation, input.sae.params.d_in)),
        ("held-out FVU", format!("{:.4}", training.validation.fvu)),
        ("made by", concat!("slurm-sae-pipeline ", env!("CARGO_PKG_VERSION")).to_owned()),
    ];
    type Curve = (&'static str, fn(&Record) -> f64);
    let curves: [Curve; 6] = [
        ("MSE", |r| r.mse),
        ("FVU", |r| r.fvu),
        ("L0", |r| r.l0),
        ("auxiliary loss", |r| r.aux),
        ("learning rate", |r| r.lr),
        ("dead fraction", |r| r.dead_fraction),
    ];
    let points = |of: fn(&Record) -> f64| thinned(&input.history, of);
    Origin {
        title: format!("Latents of {}", training.run_id),
        facts,
        curves: curves.map(|(name, of)| (name, points(of))).into(),
    }
}

/// At most about a thousand points of a curve; a figure that is no number is left out.
fn thinned(history: &[Record], of: fn(&Record) -> f64) -> Vec<(u64, f64)> {
    let every = history.len().div_ceil(1000).max(1);
    let points = history.iter().step_by(every).map(|r| (r.step, of(r)));
    points.filter(|(_, value)| value.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        sae::{
            Activation,
            formats::saelens::{self, About},
            weights::tests::random_sae,
        },
        shard::reader::tests::write_run,
        slurm::SlurmEnv,
        stage::{Kind, ResolvedConfig, StopFlag, atomic},
    };

    /// A capture of 8 rows of width 6 and an SAE of 12 latents.
    fn plant(store: &std::path::Path) {
        let (capture, training) = (store.join("runs/cap"), store.join("runs/sae"));
        for dir in [&capture, &training] {
            fs_err::create_dir_all(dir).unwrap();
        }
        write_run(&capture, &[5, 3], 6);
        let meta = json!({
            "schema": 1, "run_id": "cap", "workers": 1, "activation_scale": 1.0, "config": {},
            "model": {"id": "m", "revision": "local", "architecture": "A", "tokenizer": "0"},
            "hooks": [{"name": "h", "transformer_lens": "h", "directory": "h", "d_in": 6}],
            "dataset": {"source": "d", "documents": 3, "fingerprint": "0"},
            "totals": {"shards": 2, "sentences": 3, "rows": 8, "tokens_seen": 8},
        });
        atomic::write_json(&capture.join("meta.json"), &meta).unwrap();
        let sae = random_sae(6, 12, Activation::TopK { k: 3 });
        saelens::save(&training, &sae, About::default()).unwrap();
        let meta = json!({
            "schema": 1, "run_id": "sae", "capture_run_id": "cap", "hook": "h", "d_in": 6,
            "d_sae": 12, "steps": 1, "tokens": 8, "input_scale": 1.0, "config": {},
            "validation": {"rows": 1, "mse": 0.0, "fvu": 0.0, "l0": 3.0},
        });
        atomic::write_json(&training.join("meta.json"), &meta).unwrap();
        fs_err::write(store.join("sae_run_id.txt"), "sae\n").unwrap();
    }

    #[test]
    fn a_stop_leaves_nothing_and_the_next_start_finishes() {
        let store = tempfile::tempdir().unwrap();
        plant(store.path());
        let stage =
            TopSentences::try_parse_from(["x", "--store-dir", store.path().to_str().unwrap()]);
        let stage = stage.unwrap();
        let context = |stop| Context {
            stop,
            config: ResolvedConfig::default(),
            slurm: SlurmEnv::default(),
            threads: 1,
        };
        let stopped = StopFlag::default();
        stopped.request();
        let failure = stage.run(&context(stopped)).unwrap_err();
        assert_eq!(failure.kind, Kind::Stopped);
        let dir = store.path().join("runs/sae/top_sentences");
        assert!(!dir.exists());
        stage.run(&context(StopFlag::default())).unwrap();
        assert_eq!(fs_err::read_dir(&dir).unwrap().count(), 5);
    }

    #[test]
    fn files_that_are_not_committed_disappear() {
        let dir = tempfile::tempdir().unwrap();
        drop(Files::create(dir.path()).unwrap());
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
    }
}
