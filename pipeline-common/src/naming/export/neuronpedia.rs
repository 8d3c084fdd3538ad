//! Neuronpedia: `features/batch-<n>.json` as SAEDashboard 0.8 writes them, and
//! `explanations/batch-<n>.jsonl.gz` as in Neuronpedia's public exports.
//!
//! What is not measured here (alignment with neurons, histograms of logits) is an empty list. Activations are
//! rounded to three decimals, as there.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::{Export, explanation};
use crate::{
    stage::{Result, atomic},
    top::record::{LatentRecord, Ranked},
};

pub(super) const DIRECTORY: &str = "neuronpedia";
/// Features in a file.
const FEATURES: usize = 128;
/// Explanations in a file.
const EXPLANATIONS: usize = 1024;
/// Sentences of a tenth by strength.
const OF_A_TENTH: usize = 5;

impl Export {
    /// Writes features and explanations; how many features.
    pub(super) fn neuronpedia(&self) -> Result<u64> {
        let dir = self.dir.join(DIRECTORY);
        let alive: Vec<usize> =
            (0..self.data.d_sae()).filter(|l| self.data.table().fired[*l] > 0).collect();
        for (n, latents) in alive.chunks(FEATURES).enumerate() {
            let features: Result<Vec<Value>> = latents.iter().map(|l| self.feature(*l)).collect();
            let batch = json!({
                "model_id": self.model(), "layer": self.layer(), "sae_set": self.training.run_id,
                "sae_id_suffix": null, "features": features?,
            });
            let path = dir.join("features").join(format!("batch-{n}.json"));
            atomic::write(&path, batch.to_string().as_bytes())?;
        }
        let names: Vec<_> = self.names.values().collect();
        for (n, names) in names.chunks(EXPLANATIONS).enumerate() {
            let mut file = GzEncoder::new(Vec::new(), Compression::default());
            for name in names {
                let source = format!("{}-{}", self.layer(), self.training.run_id);
                let line = json!({
                    "id": format!("{source}-{}", name.latent), "modelId": self.model(),
                    "layer": source, "index": name.latent.to_string(), "authorId": null,
                    "description": explanation(name), "embedding": null,
                    "typeName": "slurm-sae-pipeline", "explanationModelName": name.model,
                    "umap_x": 0, "umap_y": 0, "umap_cluster": 0, "umap_log_feature_sparsity": 0,
                });
                writeln!(file, "{line}")?;
            }
            let path = dir.join("explanations").join(format!("batch-{n}.jsonl.gz"));
            atomic::write(&path, &file.finish()?)?;
        }
        Ok(alive.len() as u64)
    }

    fn feature(&self, latent: usize) -> Result<Value> {
        let record = self.data.latent(latent)?;
        let logits = record.logits.clone().unwrap_or_default();
        let (promoted, suppressed) = (logits.promoted, logits.suppressed);
        let edge = |i: usize| 2_f64.powf(f64::from(record.histogram.first + i as i32) / 4.0);
        let edges = (0..record.histogram.counts.len()).map(|i| rounded(edge(i)));
        let d_in = self.sae.params.d_out;
        let origin = &self.data.table().origin;
        Ok(json!({
            "feature_index": latent,
            "neuron_alignment_indices": [], "neuron_alignment_values": [], "neuron_alignment_l1": [],
            "correlated_neurons_indices": [], "correlated_neurons_pearson": [],
            "correlated_neurons_l1": [], "correlated_features_indices": [],
            "correlated_features_pearson": [], "correlated_features_l1": [],
            "neg_str": suppressed.iter().map(|t| &t.token).collect::<Vec<_>>(),
            "neg_values": suppressed.iter().map(|t| rounded(t.logit.into())).collect::<Vec<_>>(),
            "pos_str": promoted.iter().map(|t| &t.token).collect::<Vec<_>>(),
            "pos_values": promoted.iter().map(|t| rounded(t.logit.into())).collect::<Vec<_>>(),
            "frac_nonzero": record.density,
            "freq_hist_data_bar_values": edges.collect::<Vec<_>>(),
            "freq_hist_data_bar_heights": record.histogram.counts,
            "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [],
            "n_prompts_total": origin.sentences,
            "n_tokens_in_prompt": origin.rows / origin.sentences.max(1),
            "dataset": self.capture.dataset.source,
            "decoder_weights_dist": [],
            "activations": self.activations(&record)?,
            "vector": self.sae.params.w_dec[latent * d_in..(latent + 1) * d_in],
        }))
    }

    /// The strongest sentences, then some of each tenth by strength, strongest tenth first.
    fn activations(&self, record: &LatentRecord) -> Result<Vec<Value>> {
        let mut shown = Vec::new();
        for ranked in &record.top.max {
            shown.extend(self.activation(record, ranked, [-1.0, -1.0, -1.0])?);
        }
        for tenth in record.deciles.iter().rev() {
            let end = |at: Option<&Ranked>| at.map_or(0.0, |r| f64::from(r.value));
            let share = 1.0 / record.deciles.len() as f64;
            let bin = [end(tenth.first()), end(tenth.last()), share];
            for ranked in tenth.iter().take(OF_A_TENTH) {
                shown.extend(self.activation(record, ranked, bin)?);
            }
        }
        Ok(shown)
    }

    fn activation(
        &self,
        record: &LatentRecord,
        ranked: &Ranked,
        [bin_min, bin_max, bin_contains]: [f64; 3],
    ) -> Result<Option<Value>> {
        let Some(place) = self.data.place(ranked.sentence) else { return Ok(None) };
        let Some(active) = record.activations.get(&ranked.sentence) else { return Ok(None) };
        let sentence = self.data.sentence(place)?;
        let mut values = vec![0.0; sentence.tokens.len()];
        for (at, value) in active.at.iter().zip(&active.value) {
            if let Some(slot) = values.get_mut(*at as usize) {
                *slot = rounded((*value).into());
            }
        }
        let strongest = active.at.iter().zip(&active.value).max_by(|a, b| a.1.total_cmp(b.1));
        Ok(Some(json!({
            "bin_min": rounded(bin_min), "bin_max": rounded(bin_max),
            "bin_contains": rounded(bin_contains), "tokens": sentence.tokens, "values": values,
            "qualifying_token_index": strongest.map(|(at, _)| at),
        })))
    }

    /// The hook's layer.
    fn layer(&self) -> u32 {
        let parts = self.training.hook.split(['.', '#']);
        parts.filter_map(|part| part.parse().ok()).next().unwrap_or(0)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
