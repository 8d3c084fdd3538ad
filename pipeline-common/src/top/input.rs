//! The trained SAE, the rows it reads, and the sentences they come from.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::json;

use super::{
    signature::signature,
    tally::{Choice, Seen},
};
use crate::{
    capture::CaptureMeta,
    kernels::sparse::SparseRows,
    remote::Reader,
    sae::{
        Activation, Sae, SaeError, encode::Encoder, formats::saelens, history::Record,
        train::TrainingMeta,
    },
    shard::{ShardSet, TokenFile, format},
    slurm::Share,
    stage::{Context, Failure, Result, heartbeat, store::Pointer},
};

/// Sparse latents kept at a time, in bytes; without a fixed k each row has room for all.
const CHUNK_BYTES: usize = 64 << 20;

/// Rows encoded at a time at most.
const CHUNK_ROWS: usize = 4096;

/// Version of how sentences are found: part of the digest.
const METHOD: u32 = 1;

/// Everything the stage reads.
pub(super) struct Input {
    pub store_run: PathBuf,
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

    /// Where the results go.
    pub fn dir(&self) -> PathBuf {
        self.store_run.join("top_sentences")
    }

    /// A lock file of the stage, beside the progress files: it stays when its holder is gone.
    pub fn lock(&self, name: &str) -> Result<PathBuf> {
        let dir = self.store_run.join(heartbeat::DIRECTORY);
        fs_err::create_dir_all(&dir)?;
        Ok(dir.join(format!("top_sentences-{name}.lock")))
    }

    /// What the results are of: equal digests, equal results.
    pub fn digest(&self, choice: Choice) -> Result<String> {
        let file =
            |name: &str| format::digest(&self.store_run.join(name)).map(|(blake3, _)| blake3);
        let shards = (0..self.set.shards()).map(|shard| self.set.committed(shard));
        let files = shards.flat_map(|committed| {
            let hooks = committed.hooks.iter().filter(|h| h.hook == self.training.hook);
            let hooks = hooks.map(|h| h.file.blake3.clone());
            hooks.chain([committed.tokens.blake3.clone()])
        });
        let what = json!({
            "method": METHOD, "top_n": choice.top_n, "seed": choice.seed,
            "sae": [file("cfg.json")?, file("sae_weights.safetensors")?],
            "scale": self.capture.activation_scale, "files": files.collect::<Vec<_>>(),
        });
        Ok(blake3::hash(what.to_string().as_bytes()).to_hex().to_string())
    }

    /// Sentences of all shards.
    pub fn sentences(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// The shards of a worker's share: neighbours, so that its rows lie together.
    pub fn shards(&self, share: Share) -> Range<usize> {
        let bound = |i: usize| i * self.set.shards() / share.count;
        bound(share.index)..bound(share.index + 1)
    }

    /// The rows of some shards.
    pub fn rows(&self, shards: &Range<usize>) -> Range<usize> {
        let first = |shard: usize| {
            if shard < self.set.shards() { self.set.first_row(shard) } else { self.set.rows() }
        };
        first(shards.start)..first(shards.end)
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

    /// Some whole sentences of a shard, from `begin` on, with their rows within them.
    pub fn chunk(&self, shard: usize, tokens: &TokenFile, begin: usize) -> Vec<Seen> {
        let start = tokens.sentence_rows(begin).start;
        let fits = |s: &usize| tokens.sentence_rows(*s).end - start <= self.chunk_rows();
        let count = (begin..tokens.sentences()).take_while(fits).count().max(1);
        let seen = |sentence: usize| {
            let rows = tokens.sentence_rows(sentence);
            Seen {
                sentence: self.starts[shard] + sentence as u64,
                signature: signature(&ids(tokens, sentence)),
                rows: rows.start - start..rows.end - start,
            }
        };
        (begin..begin + count).into_par_iter().map(seen).collect()
    }

    /// Rows to encode together, so that memory stays bounded whatever the activation.
    fn chunk_rows(&self) -> usize {
        let active = match self.sae.activation {
            Activation::TopK { k } => k,
            _ => self.sae.params.d_sae,
        };
        let per_row = active * (size_of::<u32>() + size_of::<f32>());
        (CHUNK_BYTES / per_row.max(1)).clamp(1, CHUNK_ROWS)
    }

    /// Rows, counted across shards, in units of the model.
    pub fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let d_in = self.set.d_in();
        let mut out = vec![0.0; rows.len() * d_in];
        let scale = 1.0 / self.capture.activation_scale;
        let each = out.par_chunks_mut(d_in).zip(rows);
        each.for_each(|(out, row)| self.set.read_row(row, scale, out));
        out
    }

    /// Encodes rows, counted across shards; `encoder` is the SAE's.
    pub fn encode(&self, encoder: &mut Encoder, rows: Range<usize>) -> SparseRows {
        self.sae.encode_with(encoder, &self.read(rows))
    }
}

/// The ids of a sentence's rows' tokens.
pub(super) fn ids(tokens: &TokenFile, sentence: usize) -> Vec<u32> {
    tokens.sentence_rows(sentence).map(|row| tokens.token(row).id).collect()
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
