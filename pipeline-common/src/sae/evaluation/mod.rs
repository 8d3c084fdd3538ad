//! evaluate_sae: what an SAE is worth on documents it was not trained on.
//!
//! `input` opens SAE and documents, `figures` counts rows document by document, `decoder` compares
//! directions, `splice` runs the model with the SAE in it, `bootstrap` gives intervals, `report` is
//! what people read. Each figure's definition is at its field, in [`figures::Figures`],
//! [`decoder::Directions`] and `splice::Predictions`.

pub(crate) mod bootstrap;
pub mod decoder;
pub mod figures;
mod input;
mod report;
mod splice;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, Parser};

use self::{
    decoder::{directions, latents_to_compare},
    figures::{Figures, Tally},
    input::{Input, Training},
    report::{Report, Subject},
    splice::{Predictions, Splice, SpliceArgs},
};
use super::{evaluate::reconstruct, formats::Expected, settings::values::fraction};
use crate::{
    kernels::columns::column_sums,
    remote::ReaderArgs,
    stage::{
        CommonArgs, Context, Failure, Result, Stage, atomic,
        progress::{bytes, thousands},
    },
};

/// The file's name in a training's directory.
pub const FILE: &str = "evaluation.json";

/// Rows whose mean is taken at a time.
const CHUNK: usize = 2048;

const EXAMPLES: &str = "\
Examples:
  evaluate_sae                                       the newest training, on the documents it held out
  SAE_RUN_ID=my-sae evaluate_sae                     a certain one
  RUN_ID=other-text VALIDATION=1 evaluate_sae        on all documents of another capture
  SAE_PATH=layer_20/width_16k/average_l0_71 RUN_ID=my-capture HOOK=resid_post evaluate_sae
  SAE_PATH=saint.pt TOP_K=64 OUTPUT=saint.json evaluate_sae
  ROWS=100000 evaluate_sae                           on about so many rows
  WITH_MODEL=1 ROWS=100000 evaluate_sae              cross-entropy with the SAE spliced in, too
  evaluate_sae --check                               what it would cost";

/// Evaluates an SAE on held-out documents: error, sparsity, dead latents, directions, cross-entropy.
///
/// Reads the newest complete training (or SAE_RUN_ID), or an SAE of any project that convert_sae
/// reads (SAE_PATH), and rows of a capture; prints tables and writes evaluation.json. Intervals are
/// 95 % of a bootstrap over documents.
#[derive(Parser, Debug)]
#[command(name = "evaluate_sae", version, after_help = EXAMPLES)]
pub struct EvaluateSae {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    evaluate: EvaluateArgs,
    #[command(flatten)]
    splice: SpliceArgs,
    #[command(flatten)]
    reader: ReaderArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
struct EvaluateArgs {
    /// Training run to evaluate [default: the newest complete one, in sae_run_id.txt]
    #[arg(long, env, value_name = "NAME")]
    sae_run_id: Option<String>,
    /// The directory or file of another SAE, in place of a training run
    #[arg(long, env, value_name = "PATH")]
    sae_path: Option<PathBuf>,
    #[command(flatten)]
    expected: Expected,
    /// Which of the capture's hooks to encode [default: the one it was trained on, or the only one]
    #[arg(long, env, value_name = "NAME")]
    hook: Option<String>,
    /// Of a transcoder, the hook whose rows it reconstructs [default: the one it was trained on]
    #[arg(long, env, value_name = "NAME")]
    target_hook: Option<String>,
    /// Share of documents to evaluate on, the last of each shard as 02 holds them out; 0 or 1 for
    /// all [default: what the training held out, for other SAEs and captures 0.01]
    #[arg(long, env, value_parser = fraction)]
    validation: Option<f64>,
    /// Rows to evaluate on at most, whole documents of those drawn at random [default: all]
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    /// Decides which documents ROWS draws, the bootstrap, and which latents are compared where there
    /// are very many
    #[arg(long, env, default_value_t = 0)]
    seed: u64,
    /// The file to write [default: evaluation.json in the training's directory; none for SAE_PATH]
    #[arg(long, env, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Stage for EvaluateSae {
    const SECTION: &'static str = "evaluate_sae";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let input = self.open(context)?;
        let p = &input.sae.params;
        let (rows, compared) = (input.chosen.rows.len(), self.latents(&input).len());
        // The weights, the encoder's as products read them, a chunk's rows and latents.
        let weights = (p.w_enc.len() + p.w_dec.len()) * size_of::<f32>();
        let memory = weights + p.w_enc.len() * size_of::<f32>() + rows * 12 + (256 << 20);
        let encoding = 2.0 * rows as f64 * (p.d_in * p.d_sae) as f64;
        let comparing = 2.0 * compared as f64 * (p.d_out * p.d_sae) as f64;
        context.print(&Subject::new(&input).describe());
        context.print(&report::notes(&input.notes));
        context.print(&format!(
            "counted     {} rows of {} documents\nmemory      {}\n\
             arithmetic  {encoding:.3e} FLOP to encode, {comparing:.3e} to compare directions, on {} threads\n",
            thousands(rows as u64),
            thousands(input.chosen.documents as u64),
            bytes(memory as u64),
            context.threads,
        ));
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let input = self.open(context)?;
        let mean = mean(context, &input)?;
        let predictions = self.predictions(context, &input, &mean)?;
        let figures = self.figures(context, &input, mean)?;
        let latents = self.latents(&input);
        let progress = context.progress("comparing", latents.len() as u64, "latents");
        let (mut progress, row) = (progress.of_bytes(), input.sae.params.d_out * size_of::<f32>());
        let directions = directions(&input.sae, &latents, |more| {
            progress.advance(more as u64, (more * row) as u64, "");
            context.leave_if_asked("nothing is written before the end")
        })?;
        progress.finish("");
        let report =
            Report::new(&input, figures, directions, predictions, context.config.scientific());
        context.print(&report.table());
        self.write(&input, &report)
    }
}

impl EvaluateSae {
    fn open(&self, context: &Context) -> Result<Input> {
        let reader = self.reader.reader(&self.common)?;
        Input::open(context, &reader, self.common.run_id.as_deref(), &self.evaluate)
    }

    fn latents(&self, input: &Input) -> Vec<usize> {
        latents_to_compare(input.sae.params.d_sae, self.evaluate.seed)
    }

    /// What the model predicts with the SAE in it, if that was asked for.
    fn predictions(
        &self,
        context: &Context,
        input: &Input,
        mean: &[f64],
    ) -> Result<Option<Predictions>> {
        if !self.splice.with_model {
            return Ok(None);
        }
        let splice = Splice::load(context, &self.common.device, &self.splice, input)?;
        splice.run(context, input, mean, self.evaluate.seed).map(Some)
    }

    /// Sums over the rows, whose mean is known.
    fn figures(&self, context: &Context, input: &Input, mean: Vec<f64>) -> Result<Figures> {
        let chosen = &input.chosen;
        let mut tally = Tally::new(mean, chosen.documents, input.sae.params.d_sae);
        let mut progress = context.progress("evaluating", chosen.rows.len() as u64, "rows");
        reconstruct(&input.sae, &input.rows, &chosen.rows, |part| {
            tally.add(part, &chosen.document_of);
            let rows = part.latents.rows() as u64;
            progress.advance(rows, rows, "");
            context.leave_if_asked("nothing is written before the end")
        })?;
        progress.finish("");
        let figures = tally.figures(self.evaluate.seed);
        if [figures.mse, figures.l1].iter().all(|x| x.is_finite()) {
            return Ok(figures);
        }
        let what = format!("{}: the error is {}, L1 {}", input.name, figures.mse, figures.l1);
        Err(Failure::input(what).hint("its weights are too large for these rows"))
    }

    fn write(&self, input: &Input, report: &Report) -> Result<()> {
        let own = input.training.as_ref();
        let Some(path) = self.evaluate.output.clone().or(own.map(|t| t.dir.join(FILE))) else {
            return Ok(());
        };
        atomic::write_json(&path, report)?;
        if let (None, Some(Training { meta, dir })) = (&self.evaluate.output, own)
            && let Some(mut mirror) = self.reader.reader(&self.common)?.mirror(&meta.run_id, dir)
        {
            mirror.push_file(FILE)?;
        }
        tracing::info!("`{}` is written", path.display());
        Ok(())
    }
}

/// The mean of what is reconstructed, `[d_out]`.
fn mean(context: &Context, input: &Input) -> Result<Vec<f64>> {
    let (side, rows) = (input.rows.output(), &input.chosen.rows);
    let (mut block, mut sum) = (vec![], vec![0.0; side.set.d_in()]);
    for chunk in rows.chunks(CHUNK) {
        context.leave_if_asked("nothing is written before the end")?;
        side.gather(chunk, &mut block);
        let more = column_sums(&block, side.set.d_in());
        sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
    }
    Ok(sum.iter().map(|s| s / rows.len().max(1) as f64).collect())
}
