//! The rows of a capture, as training and evaluation see them: one hook's, or a transcoder's two.

use std::ops::Range;

use rayon::prelude::*;

use super::init::MEDIAN_ROWS;
use crate::{
    shard::{Order, ShardSet},
    stage::{Failure, Result},
};

/// Rows that one task gathers.
const PART: usize = 64;

/// One hook's rows and what they are multiplied by.
#[derive(Debug)]
pub struct Side {
    /// The rows.
    pub set: ShardSet,
    /// The factor.
    pub scale: f32,
}

/// What is encoded, and what is reconstructed where that is something else.
#[derive(Debug)]
pub struct Rows {
    /// The encoder's input.
    pub input: Side,
    /// A transcoder's target: the same tokens' rows of another hook.
    pub target: Option<Side>,
    /// Rows to train on, contiguous on disk.
    pub train: Vec<Range<usize>>,
    /// Rows to validate on: the last documents of each shard.
    pub held_out: Vec<usize>,
}

impl Rows {
    /// Holds back the share `validation` of the documents.
    ///
    /// # Errors
    /// An input failure for hooks with different numbers of rows; token files that cannot be read.
    pub fn new(input: Side, target: Option<Side>, validation: f64) -> Result<Self> {
        if let Some(target) = &target
            && target.set.rows() != input.set.rows()
        {
            let (found, expected) = (target.set.rows(), input.set.rows());
            return Err(Failure::input(format!(
                "the target hook has {found} rows, the input hook {expected}"
            )));
        }
        let (train, held_out) = split(&input.set, validation)?;
        Ok(Self { input, target, train, held_out })
    }

    /// What is reconstructed.
    pub fn output(&self) -> &Side {
        self.target.as_ref().unwrap_or(&self.input)
    }

    /// Number of rows to train on.
    pub fn training(&self) -> usize {
        self.train.iter().map(ExactSizeIterator::len).sum()
    }

    /// The order of the rows to train on.
    pub fn order(&self, seed: u64) -> Order {
        Order::new(seed, &self.train, self.input.set.d_in() * 2)
    }

    /// Asks for rows that are contiguous on disk before they are gathered.
    pub fn fetch(&self, rows: Range<usize>) {
        std::iter::once(&self.input)
            .chain(&self.target)
            .for_each(|side| side.set.fetch(rows.clone()));
    }

    /// The first rows of the first epoch.
    pub fn sample(&self, seed: u64) -> Vec<usize> {
        let (mut order, mut rows) = (self.order(seed), vec![]);
        order.batch(0, order.rows().min(MEDIAN_ROWS), &mut rows);
        rows
    }

    /// The held-out rows, or a sample of the training rows where nothing is held out.
    pub fn evaluation(&self, seed: u64) -> Vec<usize> {
        if self.held_out.is_empty() { self.sample(seed) } else { self.held_out.clone() }
    }
}

impl Side {
    /// Scaled rows, `[rows.len(), width]`.
    pub fn gather(&self, rows: &[usize], out: &mut Vec<f32>) {
        let width = self.set.d_in();
        out.resize(rows.len() * width, 0.0);
        let parts = out.par_chunks_mut(PART * width).zip(rows.par_chunks(PART));
        parts.for_each(|(out, rows)| {
            let chunks = out.chunks_exact_mut(width).zip(rows);
            chunks.for_each(|(out, row)| self.set.read_row(*row, self.scale, out));
        });
    }
}

/// Splits each shard by document: the last documents are held out, so that training rows stay
/// contiguous. Returns ranges to train on and rows to validate on.
fn split(set: &ShardSet, share: f64) -> Result<(Vec<Range<usize>>, Vec<usize>)> {
    let (mut train, mut held_out) = (vec![], vec![]);
    for shard in 0..set.shards() {
        let (first, end) = (set.first_row(shard), set.first_row(shard + 1));
        let cut = if share > 0.0 { first + first_held_out(set, shard, share)? } else { end };
        train.push(first..cut);
        held_out.extend(cut..end);
    }
    Ok((train, held_out))
}

/// The row of a shard at which its last `share` of documents begins.
fn first_held_out(set: &ShardSet, shard: usize, share: f64) -> Result<usize> {
    let tokens = set.tokens(shard)?;
    let mut starts: Vec<usize> = vec![];
    let mut last = None;
    for sentence in 0..tokens.sentences() {
        let document = tokens.document(sentence);
        if last.replace(document) != Some(document) {
            starts.push(tokens.sentence_rows(sentence).start);
        }
    }
    let keep = starts.len() - ((starts.len() as f64 * share).round() as usize).min(starts.len());
    Ok(starts.get(keep).copied().unwrap_or(tokens.rows()))
}
