//! delphi 0.1.3: a cache of latents, as if delphi had run the model, and explanations.
//!
//! `latents/<hook>/<first>_<last>.safetensors` for each of five parts of the latents, last included:
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `locations` | U16 or U32 `[N, 3]` | sentence, place in it, latent less the part's first |
//! | `activations` | F16 `[N]` | above 1e-5 |
//! | `tokens` | I64 `[sentences, longest]` | ids, 0 where a shorter sentence has ended |
//!
//! `explanations/<hook>_latent<n>.txt` has a JSON string.

use std::ops::Range;

use half::f16;
use safetensors::Dtype;
use serde_json::json;

use super::{Export, explanation};
use crate::{
    sae::encode::Encoder,
    shard::format::{self, TensorSpec},
    stage::{Context, Failure, Result, atomic},
};

pub(super) const DIRECTORY: &str = "delphi";
/// Parts of the latents.
const PARTS: usize = 5;
/// Weaker activations are left out.
const WEAKEST: f32 = 1e-5;
/// Rows encoded at a time.
const CHUNK: usize = 1024;

/// Active latents of one part, in the order of sentence, place, latent.
#[derive(Default)]
struct Part {
    locations: Vec<[u32; 3]>,
    activations: Vec<f16>,
}

/// The sentences of the cache.
struct Sentences {
    /// Their ids.
    tokens: Vec<Vec<u32>>,
    /// Their rows, counted across shards.
    rows: Vec<Range<usize>>,
    longest: usize,
}

impl Export {
    /// Writes the cache of the first sentences with about so many tokens, and the explanations; how many
    /// tokens.
    pub(super) fn delphi(&self, context: &Context, tokens: u64) -> Result<u64> {
        let dir = self.dir.join(DIRECTORY);
        let sentences = self.sentences(tokens)?;
        let bounds: Vec<usize> = (0..=PARTS).map(|i| i * self.sae.params.d_sae / PARTS).collect();
        let parts = self.encoded(context, &sentences, &bounds)?;
        let latents = dir.join("latents").join(&self.training.hook);
        fs_err::create_dir_all(&latents)?;
        for (part, bound) in parts.iter().zip(bounds.windows(2)) {
            if bound[0] < bound[1] {
                let name = format!("{}_{}.safetensors", bound[0], bound[1] - 1);
                write(&latents.join(name), part, &sentences, bound[1] - bound[0])?;
            }
        }
        let rows: usize = sentences.rows.iter().map(Range::len).sum();
        let setting = |key| self.capture.config.value(key);
        let config = json!({
            "dataset_repo": self.capture.dataset.source,
            "dataset_split": setting("data_split").unwrap_or("train"),
            "dataset_name": "", "dataset_column": setting("text_field").unwrap_or("text"),
            "batch_size": 32,
            "cache_ctx_len": sentences.longest, "n_tokens": rows, "n_splits": PARTS,
            "model_name": self.capture.model.id,
        });
        atomic::write_json(&latents.join("config.json"), &config)?;
        for name in self.names.values() {
            let file = format!("{}_latent{}.txt", self.training.hook, name.latent);
            let text = json!(explanation(name)).to_string();
            atomic::replace(&dir.join("explanations").join(file), text.as_bytes())?;
        }
        Ok(rows as u64)
    }

    /// The first sentences, until they have so many tokens.
    fn sentences(&self, tokens: u64) -> Result<Sentences> {
        let mut found = Sentences { tokens: vec![], rows: vec![], longest: 0 };
        let mut rows = 0;
        for shard in 0..self.set.shards() {
            let file = self.set.tokens(shard)?;
            let first = self.set.first_row(shard);
            for sentence in 0..file.sentences() {
                if rows >= tokens {
                    return Ok(found);
                }
                let own = file.sentence_rows(sentence);
                rows += own.len() as u64;
                found.longest = found.longest.max(own.len());
                found.tokens.push(own.clone().map(|row| file.token(row).id).collect());
                found.rows.push(first + own.start..first + own.end);
            }
        }
        Ok(found)
    }

    /// What is active in the sentences, by part.
    fn encoded(
        &self,
        context: &Context,
        sentences: &Sentences,
        bounds: &[usize],
    ) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = (0..PARTS).map(|_| Part::default()).collect();
        let mut encoder = self.sae.encoder();
        let end = sentences.rows.last().map_or(0, |rows| rows.end);
        let mut progress = context.progress("caching latents", end as u64, "rows");
        // The sentences' rows follow each other, across shards too.
        for begin in (0..end).step_by(CHUNK) {
            context.leave_if_asked("the cache for delphi is not written")?;
            let chunk = begin..(begin + CHUNK).min(end);
            self.encode(&mut encoder, chunk.clone(), |row, latent, value| {
                let row = chunk.start + row;
                let sentence = sentences.rows.partition_point(|rows| rows.end <= row);
                let part = bounds.partition_point(|bound| *bound <= latent) - 1;
                let place = row - sentences.rows[sentence].start;
                let location = [sentence, place, latent - bounds[part]];
                parts[part].locations.push(location.map(|x| x as u32));
                parts[part].activations.push(f16::from_f32(value));
            });
            progress.advance(chunk.len() as u64, chunk.len() as u64, "");
        }
        progress.finish("");
        Ok(parts)
    }

    /// Encodes rows and visits what is active, by row and latent.
    fn encode(
        &self,
        encoder: &mut Encoder,
        rows: Range<usize>,
        mut visit: impl FnMut(usize, usize, f32),
    ) {
        let d_in = self.set.d_in();
        let mut input = vec![0.0; rows.len() * d_in];
        let scale = 1.0 / self.capture.activation_scale;
        for (out, row) in input.chunks_mut(d_in).zip(rows) {
            self.set.read_row(row, scale, out);
        }
        let active = self.sae.encode_with(encoder, &input);
        for row in 0..active.rows() {
            let (latents, values) = active.row(row);
            let mut pairs: Vec<_> = latents.iter().zip(values).collect();
            pairs.sort_by_key(|(latent, _)| **latent);
            for (latent, value) in pairs.into_iter().filter(|(_, value)| **value > WEAKEST) {
                visit(row, *latent as usize, *value);
            }
        }
    }
}

fn write(path: &std::path::Path, part: &Part, sentences: &Sentences, latents: usize) -> Result<()> {
    let n = part.activations.len();
    let largest = sentences.rows.len().max(latents).max(sentences.longest);
    let flat = part.locations.iter().flatten();
    let (dtype, locations): (Dtype, Vec<u8>) = if largest <= 1 << 16 {
        (Dtype::U16, flat.flat_map(|x| (*x as u16).to_le_bytes()).collect())
    } else {
        (Dtype::U32, flat.flat_map(|x| x.to_le_bytes()).collect())
    };
    let mut tokens = vec![0_i64; sentences.tokens.len() * sentences.longest];
    for (row, ids) in tokens.chunks_mut(sentences.longest.max(1)).zip(&sentences.tokens) {
        row.iter_mut().zip(ids).for_each(|(slot, id)| *slot = (*id).into());
    }
    let spec = |name, dtype, shape| TensorSpec { name, dtype, shape };
    let shape = vec![sentences.tokens.len(), sentences.longest];
    let tensors: [(TensorSpec<'_>, &[u8]); 3] = [
        (spec("tokens", Dtype::I64, shape), bytemuck::cast_slice(&tokens)),
        (spec("locations", dtype, vec![n, 3]), &locations),
        (spec("activations", Dtype::F16, vec![n]), bytemuck::cast_slice(&part.activations)),
    ];
    if sentences.tokens.is_empty() {
        return Err(Failure::input("the capture has no sentence to cache"));
    }
    Ok(format::write_file(path, &tensors, &vec![])?)
}
