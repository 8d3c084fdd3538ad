//! The trained SAE, the rows it reads, and the sentences they come from.

use std::{ops::Range, path::Path};

use rayon::prelude::*;

use crate::{
    capture::CaptureMeta,
    kernels::sparse::SparseRows,
    remote::Reader,
    sae::{Sae, SaeError, encode::Encoder, formats::saelens, history::Record, train::TrainingMeta},
    shard::{ShardSet, TokenFile},
    stage::{Context, Failure, Result, store::Pointer},
};

/// Sparse latents kept at a time, in bytes; without a fixed k each row has room for all.
const CHUNK_BYTES: usize = 64 << 20;

/// Rows encoded at a time at most.
const CHUNK_ROWS: usize = 4096;

/// Everything the stage reads.
pub(super) struct Input {
    pub store_run: std::path::PathBuf,
    pub training: TrainingMeta,
    pub history: Vec<Record>,
    pub capture: CaptureMeta,
    pub set: ShardSet,
    pub sae: Sae,
    /// First sentence of each shard, and the total.
    pub starts: Vec<u64>,
}

impl Input {
    /// Opens the training run and the capture it was trained on, or another one.
    pub fn open(
        reader: &Reader,
        training: Option<&str>,
        capture: Option<&str>,
        context: &Context,
    ) -> Result<Self> {
        let (run_id, store_run) = reader.find(training, Pointer::Training)?;
        let training = TrainingMeta::read_complete(&store_run)?;
        let history = read_history(&store_run)?;
        let wanted = capture.unwrap_or(&training.capture_run_id);
        let (capture_id, capture_dir) = reader.find(Some(wanted), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&capture_dir)?;
        let hook = capture.hook(Some(&training.hook))?.name.clone();
        let sae = saelens::load(&store_run)?;
        let capture_dir = reader.stage(context, &capture_id, &capture_dir, &hook)?;
        let set = ShardSet::open(&capture_dir, &hook)?;
        if set.d_in() != sae.params.d_in {
            return Err(Failure::input(format!(
                "SAE of run `{run_id}` has d_in {}, hook `{hook}` of run `{}` has {}",
                sae.params.d_in,
                capture.run_id,
                set.d_in()
            )));
        }
        let mut starts = vec![0];
        for shard in 0..set.shards() {
            starts.push(starts[shard] + set.committed(shard).sentences);
        }
        Ok(Self { store_run, training, history, capture, set, sae, starts })
    }

    /// Sentences of all shards.
    pub fn sentences(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// The tokens of a shard, as many sentences as its manifest line says.
    pub fn tokens(&self, shard: usize) -> Result<TokenFile> {
        let tokens = self.set.tokens(shard)?;
        let committed = self.set.committed(shard);
        if tokens.sentences() as u64 != committed.sentences {
            return Err(Failure::input(format!(
                "`{}` has {} sentences, the manifest of run `{}` says {}",
                committed.tokens.path,
                tokens.sentences(),
                self.capture.run_id,
                committed.sentences
            )));
        }
        Ok(tokens)
    }

    /// Rows to encode together, so that memory stays bounded whatever the activation.
    pub fn chunk_rows(&self) -> usize {
        let per_row = self.sae.params.d_sae * (size_of::<u32>() + size_of::<f32>());
        (CHUNK_BYTES / per_row.max(1)).clamp(1, CHUNK_ROWS)
    }

    /// Encodes ranges of rows, counted across shards, one after the other, in units of the model;
    /// `encoder` is the SAE's.
    pub fn encode(&self, encoder: &mut Encoder, ranges: &[Range<usize>]) -> SparseRows {
        let d_in = self.set.d_in();
        let rows: Vec<usize> = ranges.iter().cloned().flatten().collect();
        let mut input = vec![0.0; rows.len() * d_in];
        let each = input.par_chunks_mut(d_in).zip(&rows);
        let scale = 1.0 / self.capture.activation_scale;
        each.for_each(|(out, row)| self.set.read_row(*row, scale, out));
        self.sae.encode_with(encoder, &input)
    }
}

fn read_history(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join("history.json");
    let bytes = match fs_err::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(serde_json::from_slice(&bytes)
        .map_err(|e| SaeError::Format { path, reason: e.to_string() })?)
}
