//! Stage 03 from its arguments to its files.

use clap::Parser;

use super::{
    data,
    detail::AllCuts,
    finish::{Finish, LATENTS_AT_A_TIME},
    input::Input,
    logits::Logits,
    part::{DIRECTORY, PartFiles},
    sketch::Sketch,
    tally::{Choice, Tally},
};
use crate::{
    remote::{Reader, ReaderArgs},
    sae::Cut,
    slurm::Share,
    stage::{
        CommonArgs, Context, Failure, Reporter, Result, Stage,
        lock::Lock,
        progress::{bytes, thousands},
    },
    text::HubArgs,
};

const EXAMPLES: &str = "\
Examples:
  03_top_sentences                      top sentences of the newest training
  TOP_N=25 03_top_sentences             longer lists
  SAE_RUN_ID=my-sae 03_top_sentences    of a certain training
  RUN_ID=other-text 03_top_sentences    on the activations of another capture
  03_top_sentences --check              what it would cost
  sbatch slurm/submit_top_sentences.sh  the same as a SLURM job
  sbatch --array=0-7 slurm/submit_top_sentences.sh   in eight jobs, each with a share of the shards";

/// Finds the sentences that excite each latent most, and makes a report of them.
///
/// Reads the newest complete training (or SAE_RUN_ID) and the capture it was trained on (or
/// RUN_ID), and writes YAML, JSON lines and report.html into the training run: of each latent the best
/// sentences, samples by strength and at random, a histogram, its neighbours, and the tokens that it
/// promotes if the model is on this machine. In a job array each job reads a share of the shards, and
/// the last one joins what all found; the files are the same for any number of jobs.
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
    /// Decides which sentences are drawn for samples
    #[arg(long, env, default_value_t = 0, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    reader: ReaderArgs,
    #[command(flatten)]
    hub: HubArgs,
}

impl Stage for TopSentences {
    const SECTION: &'static str = "top_sentences";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let reader = self.reader.reader(&self.common)?;
        let input = self.open(context, &reader)?;
        let share = self.share(context, &reader)?;
        let rows = input.rows(&input.shards(share)).len();
        let p = &input.sae.params;
        let (memory, disk) = self.cost(&input);
        let flop = 2.0 * rows as f64 * p.d_in as f64 * p.d_sae as f64;
        context.print(&format!(
            "training    {}\ncapture     {} ({} rows, {} sentences)\nhook        {} (d_in {})\n\
             latents     {}\nshare       job {} of {}, {} rows\nmemory      up to {}\n\
             disk        up to {}\narithmetic  {flop:.3e} FLOP on {} threads\n",
            input.training.run_id,
            input.capture.run_id,
            thousands(input.set.rows() as u64),
            thousands(input.sentences()),
            input.training.hook,
            p.d_in,
            thousands(p.d_sae as u64),
            share.index + 1,
            share.count,
            thousands(rows as u64),
            bytes(memory as u64),
            bytes(disk as u64),
            context.threads,
        ));
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let reader = self.reader.reader(&self.common)?;
        let input = self.open(context, &reader)?;
        let share = self.share(context, &reader)?;
        let reporter = Reporter::new(context, &input.store_run, Self::SECTION, share);
        reporter.watch(|| self.find(context, (&input, &reader), share, &reporter))
    }
}

impl TopSentences {
    fn open(&self, context: &Context, reader: &Reader) -> Result<Input> {
        Input::open(reader, self.sae_run_id.as_deref(), self.common.run_id.as_deref(), context)
    }

    fn share(&self, context: &Context, reader: &Reader) -> Result<Share> {
        let share = context.slurm.share(None, None)?;
        if share.count > 1 && reader.is_remote() {
            let what = "the jobs of an array find each other's parts in a directory, and STORE_DIR \
                        is an object store";
            return Err(
                Failure::usage(what).hint("use one job, or a STORE_DIR that all jobs share")
            );
        }
        Ok(share)
    }

    fn choice(&self) -> Choice {
        Choice { top_n: self.top_n.into(), seed: self.seed }
    }

    /// Bytes of memory and of disk at most.
    fn cost(&self, input: &Input) -> (usize, usize) {
        let (p, choice) = (&input.sae.params, self.choice());
        let rows_per_sentence = input.set.rows() / (input.sentences().max(1) as usize);
        // The encoder has a copy of its own.
        let weights = (2 * p.w_enc.len() + p.w_dec.len()) * size_of::<f32>();
        let sketch = p.d_sae * Sketch::width(p.d_sae) * size_of::<i32>();
        // Of two tallies, while parts are joined.
        let tallies = 2 * (sketch + p.d_sae * (choice.bytes() + 512));
        let block = p.d_sae.min(LATENTS_AT_A_TIME) * 3 * choice.kept() * rows_per_sentence * 8;
        let pairs = p.d_sae * (3 * choice.top_n + Choice::EVEN + Choice::IMPORTANCE);
        let lines = pairs * 120;
        // Of each token an id and a text of about ten characters.
        let sentences = input.set.rows().min(pairs * rows_per_sentence) * 20;
        let cuts = input.set.rows() * size_of::<Cut>();
        (weights + tallies + block + (256 << 20), lines + sentences + tallies / 2 + cuts)
    }

    fn find(
        &self,
        context: &Context,
        (input, reader): (&Input, &Reader),
        share: Share,
        reporter: &Reporter,
    ) -> Result<()> {
        let (dir, digest) = (input.dir(), input.digest(self.choice())?);
        let is_done = || Ok::<_, Failure>(data::whole(&dir)?.is_some_and(|o| o.digest == digest));
        if !is_done()? {
            let part = PartFiles::of(&dir, share, &digest);
            let _mine = Lock::take(
                &input.lock(&format!("{}-of-{}", share.index, share.count))?,
                &format!("job {} of {}", share.index, share.count),
            )?;
            if !part.is_there()? {
                self.part(context, (input, share), &part, reporter)?;
            }
            let parts = (0..share.count).map(|index| Share { index, ..share });
            let parts: Vec<(Share, PartFiles)> =
                parts.map(|share| (share, PartFiles::of(&dir, share, &digest))).collect();
            let mut missing = vec![];
            for (share, part) in &parts {
                if !part.is_there()? {
                    missing.push(share.index.to_string());
                }
            }
            if !missing.is_empty() && !is_done()? {
                tracing::info!(
                    "this job's part is done; the last of jobs {} joins all",
                    missing.join(", ")
                );
                return Ok(());
            }
            let _joining = Lock::wait(&input.lock("join")?)?;
            if !is_done()? {
                let logits = Logits::find(input, &self.hub);
                let (tally, cuts) = self.joined(input, &parts)?;
                Finish { input, tally, cuts, logits, digest: digest.clone() }
                    .write(context, reporter)?;
                fs_err::remove_dir_all(dir.join(DIRECTORY))?;
            }
        }
        if let Some(mut mirror) = reader.mirror(&input.training.run_id, &input.store_run) {
            mirror.push_directory("top_sentences")?;
        }
        context.print(&format!("{}\n", dir.join(data::REPORT).display()));
        Ok(())
    }

    /// The first pass, over a share of the shards, in chunks of whole sentences.
    fn part(
        &self,
        context: &Context,
        (input, share): (&Input, Share),
        part: &PartFiles,
        reporter: &Reporter,
    ) -> Result<()> {
        let shards = input.shards(share);
        let sentences = input.starts[shards.end] - input.starts[shards.start];
        reporter.begin("sentences", 0, sentences);
        let mut tally = Tally::new(input.sae.params.d_sae, self.choice());
        let mut encoder = input.sae.encoder();
        let progress = context.progress("top sentences", sentences, "sentences");
        let mut progress = progress.reported_by(reporter);
        let mut writer = part.cuts_writer()?;
        for shard in shards {
            let tokens = input.tokens(shard)?;
            let mut begin = 0;
            while begin < tokens.sentences() {
                context.leave_if_asked("nothing of this pass is kept")?;
                let seen = input.chunk(shard, &tokens, begin);
                let first = input.set.first_row(shard) + tokens.sentence_rows(begin).start;
                let rows = first..first + seen.last().map_or(0, |seen| seen.rows.end);
                let active = input.encode(&mut encoder, rows.clone());
                tally.add(&active, first as u64, &seen);
                let cut = |row| Cut::of(input.sae.activation, active.row(row));
                writer.push(&(0..rows.len()).map(cut).collect::<Vec<_>>())?;
                begin += seen.len();
                progress.advance(seen.len() as u64, rows.len() as u64, "");
            }
        }
        progress.finish("");
        writer.commit()?;
        part.write(&tally)
    }

    /// The tallies of all parts together, and their cuts.
    fn joined(&self, input: &Input, parts: &[(Share, PartFiles)]) -> Result<(Tally, AllCuts)> {
        let d_sae = input.sae.params.d_sae;
        let mut tally = Tally::new(d_sae, self.choice());
        let mut cuts = vec![];
        for (share, part) in parts {
            tally.merge(&part.read(d_sae, self.choice())?);
            let rows = input.rows(&input.shards(*share));
            cuts.push((rows.start, part.cuts(rows.len())?));
        }
        Ok((tally, AllCuts(cuts)))
    }
}

#[cfg(test)]
pub(super) mod tests {
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
    pub fn plant(store: &std::path::Path) {
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
        let files = |dir: &std::path::Path| fs_err::read_dir(dir).unwrap().count();
        assert_eq!((files(&dir), files(&dir.join(DIRECTORY))), (1, 0));
        stage.run(&context(StopFlag::default())).unwrap();
        assert_eq!(files(&dir), 7);
    }
}
