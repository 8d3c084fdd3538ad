//! What an evaluation prints and writes.

use std::fmt::Write;

use serde::Serialize;

use super::{
    decoder::{Directions, Spread},
    figures::{Figures, Quantiles},
    input::Input,
    splice::Predictions,
};
use crate::stage::{ResolvedConfig, progress::thousands};

/// Version of `evaluation.json`.
const SCHEMA: u32 = 1;

/// `evaluation.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this file.
    pub schema: u32,
    /// What was evaluated, on what.
    pub subject: Subject,
    /// Figures on rows.
    pub figures: Figures,
    /// Figures of the weights alone.
    pub directions: Directions,
    /// Figures of the model with the SAE in it, with WITH_MODEL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<Predictions>,
    /// What to know besides, a sentence each.
    pub notes: Vec<String>,
    /// The settings that decide all this.
    pub config: ResolvedConfig,
}

/// An SAE and rows.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// The training run, or the path.
    pub sae: String,
    /// The format of its files.
    pub format: String,
    /// Its activation.
    pub activation: String,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// The capture the rows are of.
    pub capture: String,
    /// The hook whose rows are encoded.
    pub hook: String,
    /// Of a transcoder, the hook whose rows are reconstructed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_hook: Option<String>,
}

impl Subject {
    /// What `input` holds.
    pub fn new(input: &Input) -> Self {
        let p = &input.sae.params;
        Self {
            sae: input.name.clone(),
            format: input.format.to_string(),
            activation: input.sae.activation.to_string(),
            d_in: p.d_in,
            d_out: p.d_out,
            d_sae: p.d_sae,
            capture: input.capture.run_id.clone(),
            hook: input.hook.clone(),
            target_hook: input.target_hook.clone(),
        }
    }

    /// In lines.
    pub fn describe(&self) -> String {
        let to = self.target_hook.as_ref().map_or(String::new(), |hook| format!(" to {hook}"));
        format!(
            "SAE         {} ({}), {}\nwidth       {} latents, d_in {}, d_out {}\n\
             rows        of hook {}{to} of run `{}`\n",
            self.sae,
            self.format,
            self.activation,
            thousands(self.d_sae as u64),
            self.d_in,
            self.d_out,
            self.hook,
            self.capture
        )
    }
}

/// Notes, one a line.
pub fn notes(notes: &[String]) -> String {
    notes.iter().map(|note| format!("note        {note}\n")).collect()
}

impl Report {
    /// Puts it together.
    pub fn new(
        input: &Input,
        figures: Figures,
        directions: Directions,
        predictions: Option<Predictions>,
        config: ResolvedConfig,
    ) -> Self {
        let mut notes = input.notes.clone();
        let (compared, all) = (directions.compared, input.sae.params.d_sae);
        if compared < all {
            notes.push(format!(
                "largest cosines are those of {} latents drawn from {}, each with all others",
                thousands(compared as u64),
                thousands(all as u64)
            ));
        }
        let left_out = predictions.as_ref().map_or(0, |p| p.sentences_left_out);
        if left_out > 0 {
            notes.push(format!(
                "{} sentences are not run through the model: their text gives other tokens than were captured",
                thousands(left_out)
            ));
        }
        let subject = Subject::new(input);
        Self { schema: SCHEMA, subject, figures, directions, predictions, notes, config }
    }

    /// As aligned tables.
    pub fn table(&self) -> String {
        let f = &self.figures;
        let mut text = self.subject.describe();
        let _infallible = writeln!(
            text,
            "counted     {} rows of {} documents",
            thousands(f.rows),
            thousands(f.documents as u64)
        );
        text += &notes(&self.notes);
        text += &format!("\n{:24}{:>12}  95 % interval\n", "", "");
        text += &line("MSE", f.mse, None);
        text += &line("FVU", f.fvu, f.fvu_interval);
        text += &line("explained variance", f.explained_variance, None);
        text += &line("L0", f.l0, f.l0_interval);
        text += &line("L1", f.l1, None);
        text += &line("dead share", f.dead_share, None);
        if let Some(cosine) = self.directions.encoder_decoder_cosine {
            text += &line("encoder-decoder cosine", cosine, None);
        }
        if let Some(cosines) = &self.directions.largest_cosine {
            text += &line("cosine above 0.9, share", cosines.share_above_0_9, None);
        }
        text += &self.predictions.as_ref().map_or(String::new(), predicted);
        text + &self.spreads() + &self.density()
    }

    fn spreads(&self) -> String {
        let names = ["mean", "min", "5 %", "25 %", "50 %", "75 %", "95 %", "max"];
        let header: String = names.iter().map(|name| format!("{name:>10}")).collect();
        let row = |name: &str, values: [Option<f64>; 8]| {
            let cell = |v: Option<f64>| format!("{:>10}", v.map_or(String::new(), number));
            format!("{name:<24}{}\n", values.map(cell).concat().trim_end())
        };
        let quantiles = |mean: f64, q: &Quantiles| {
            [mean, q.min, q.p05, q.p25, q.p50, q.p75, q.p95, q.max].map(Some)
        };
        let spread = |s: &Spread| {
            let [mean, min, max] = [s.mean, s.min, s.max].map(Some);
            [mean, min, None, None, None, None, None, max]
        };
        let (f, d) = (&self.figures, &self.directions);
        let mut text = format!("\n{:24}{header}\n", "");
        text += &row("L0 of a row", quantiles(f.l0, &f.l0_quantiles));
        if let Some(cosines) = &d.largest_cosine {
            text += &row("largest decoder cosine", quantiles(cosines.mean, &cosines.quantiles));
        }
        text += &row("decoder norm", spread(&d.decoder_norm));
        text + &row("encoder norm", spread(&d.encoder_norm))
    }

    fn density(&self) -> String {
        let mut text = format!("\n{:<24}{:>12}\n", "log10 of density", "latents");
        for bin in &self.figures.density {
            let from = format!("{:.1} to {:.1}", bin.log10_up_to - 0.5, bin.log10_up_to);
            let _infallible = writeln!(text, "{from:<24}{:>12}", thousands(bin.latents));
        }
        text + &format!("{:<24}{:>12}\n", "never active", thousands(self.figures.dead as u64))
    }
}

/// The model's part of the table.
fn predicted(p: &Predictions) -> String {
    let tokens = thousands(p.tokens);
    let mut text = format!("\n{:24}{:>12}  95 % interval, {tokens} tokens\n", "", "nats a token");
    for (name, estimate) in [
        ("CE, model unchanged", p.cross_entropy),
        ("CE, SAE spliced in", p.spliced),
        ("CE, zero ablation", p.zero_ablation),
        ("CE, mean ablation", p.mean_ablation),
        ("KL, unchanged to spliced", p.divergence),
        ("CE recovered, of zeros", p.recovered_from_zero),
        ("CE recovered, of mean", p.recovered_from_mean),
    ] {
        text += &line(name, estimate.value, estimate.interval);
    }
    text
}

fn line(name: &str, value: f64, interval: Option<[f64; 2]>) -> String {
    let interval = interval
        .map_or(String::new(), |[low, high]| format!("  {} to {}", number(low), number(high)));
    format!("{name:<24}{:>12}{interval}\n", number(value))
}

/// Four decimals, or an exponent where those say little.
fn number(x: f64) -> String {
    if x == 0.0 || (0.001..100_000.0).contains(&x.abs()) {
        format!("{x:.4}")
    } else {
        format!("{x:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(number(0.0), "0.0000");
        assert_eq!(number(-12.345_67), "-12.3457");
        assert_eq!(number(1.5e-7), "1.500e-7");
        assert_eq!(number(3e9), "3.000e9");
        assert_eq!(line("L0", 4.0, Some([3.5, 4.5])).trim_end().len(), 54);
    }
}
