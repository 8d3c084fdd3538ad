//! Three threads with bounded queues: tokenise, forward, write.
//!
//! The model never waits for the disk, nor the disk for the model: each queue holds two batches,
//! and whoever is ahead waits. Batches are a pure function of the stream and the configuration:
//! BATCH_SIZE_SAVE documents each, or fewer once they have as many sentences, counted from the
//! stream's first document, so a restart at a shard's boundary computes the same batches, and so
//! does a shard that is captured again.

use std::{
    ops::Range,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::{
    policy::Rows,
    worker::{Batch, Worker},
};
use crate::{
    kernels::host,
    model::{Hook, HookedModel, Packed},
    shard::{Dropped, tokens::Token},
    stage::{Context, Failure, Reporter, Result},
    text::{
        Contexts, Dataset, Document,
        dataset::Documents,
        tokenizer::{Encoding, Tokenizer},
    },
};

/// Batches each queue holds.
pub const QUEUE: usize = 2;

/// What turns documents into tokens.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The documents.
    pub dataset: &'a Dataset,
    /// What they are cut into.
    pub contexts: &'a Contexts,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Tokens a sentence, special tokens included.
    pub max_length: usize,
    /// Documents a batch, or fewer with as many sentences.
    pub batch_size: u64,
    /// Which tokens get rows.
    pub rows: &'a Rows,
}

/// A batch on its way to the model.
#[derive(Debug)]
pub struct Tokenised {
    /// The documents it covers.
    pub documents: Range<u64>,
    /// Their sentences.
    pub texts: Vec<Document>,
    /// Their tokens.
    pub encodings: Vec<Encoding>,
}

impl Source<'_> {
    /// The documents of a range as tokens; fewer where the dataset ends before.
    ///
    /// # Errors
    /// Whatever is wrong with the dataset or its text.
    pub fn tokenise(&self, documents: Range<u64>) -> Result<Tokenised> {
        let documents = documents.start..documents.end.min(self.dataset.len());
        let mut texts = Vec::new();
        for document in self.dataset.documents(documents.clone())? {
            texts.extend(self.contexts.of(document?)?);
        }
        self.encode(documents, texts)
    }

    fn encode(&self, documents: Range<u64>, texts: Vec<Document>) -> Result<Tokenised> {
        let strings: Vec<String> = texts.iter().map(|d| d.text.clone()).collect();
        let encodings = self.tokenizer.encode_batch(&strings, self.max_length)?;
        Ok(Tokenised { documents, texts, encodings })
    }
}

/// Captures the documents the worker has left; returns when all are committed or a stop was
/// asked for, with everything whole committed.
///
/// # Errors
/// Whatever a thread met first.
pub fn run(
    source: Source<'_>,
    model: &dyn HookedModel,
    hooks: &[Hook],
    worker: &mut Worker,
    context: &Context,
    reporter: &Reporter,
) -> Result<()> {
    let left = worker.left();
    let progress = context.progress("capturing", worker.documents(), "documents");
    let mut progress = progress.reported_by(reporter);
    progress.resume_at(worker.documents() - worker.documents_left(), worker.captured().tokens_seen);
    thread::scope(|scope| {
        let (to_model, from_reader) = sync_channel(QUEUE);
        let (to_writer, from_model) = sync_channel(QUEUE);
        let reader = scope.spawn(move || read(source, &left, &to_model));
        let writer = scope.spawn(move || write(worker, &from_model, reporter));
        let mut forward = || -> Result<()> {
            for tokenised in &from_reader {
                if context.stop.requested() {
                    break;
                }
                let batch = compute(source, model, hooks, tokenised)?;
                let (n, tokens) = (batch.documents.end - batch.documents.start, batch.tokens_seen);
                if to_writer.send(batch).is_err() {
                    break;
                }
                progress.advance(n, tokens, "");
            }
            Ok(())
        };
        let computed = forward();
        // Closing the queues lets both threads finish; a thread's own error explains more than
        // the closed queue its neighbour sees.
        drop((from_reader, to_writer));
        joined(writer)??;
        joined(reader)??;
        computed
    })?;
    progress.finish("");
    Ok(())
}

fn joined<T>(handle: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    handle.join().map_err(|panic| std::panic::resume_unwind(panic))
}

fn read(source: Source<'_>, left: &[Range<u64>], out: &SyncSender<Tokenised>) -> Result<()> {
    left.iter().try_for_each(|range| read_range(source, range, out))
}

fn read_range(source: Source<'_>, left: &Range<u64>, out: &SyncSender<Tokenised>) -> Result<()> {
    let mut documents = source.dataset.documents(left.clone())?;
    let mut begin = left.start;
    while begin < left.end {
        let (end, texts) = batch(source, &mut documents, begin..left.end)?;
        if out.send(source.encode(begin..end, texts)?).is_err() {
            break;
        }
        begin = end;
    }
    Ok(())
}

/// The next documents' sentences, and where the batch ends: behind BATCH_SIZE_SAVE documents, or
/// earlier, so that a forward pass stays small, once they have as many sentences.
fn batch(
    source: Source<'_>,
    documents: &mut Documents,
    left: Range<u64>,
) -> Result<(u64, Vec<Document>)> {
    let (mut end, mut texts) = (left.start, Vec::new());
    let most = left.end.min(left.start + source.batch_size);
    while end < most && (texts.len() as u64) < source.batch_size {
        let document = documents.next().ok_or_else(|| {
            let (there, before) = (end, source.dataset.len());
            let what = format!(
                "the dataset ends after document {there}, it had {before} when the run began"
            );
            Failure::input(what).hint("a file changed while it was read: give RUN_ID a new name")
        })??;
        texts.extend(source.contexts.of(document)?);
        end += 1;
    }
    Ok((end, texts))
}

fn write(worker: &mut Worker, batches: &Receiver<Batch>, reporter: &Reporter) -> Result<()> {
    for batch in batches {
        worker.add(batch)?;
        report(worker, reporter);
    }
    worker.commit()?;
    report(worker, reporter);
    Ok(())
}

/// What is committed, which only the writer knows.
pub fn report(worker: &Worker, reporter: &Reporter) {
    let captured = worker.captured();
    reporter.update(|beat| {
        (beat.rows, beat.shards) = (captured.rows, captured.shards);
        beat.tokens = beat.tokens.max(captured.tokens_seen);
    });
}

/// Runs a batch through the model and keeps the rows that policies leave.
///
/// # Errors
/// What the model reports.
pub fn compute(
    source: Source<'_>,
    model: &dyn HookedModel,
    hooks: &[Hook],
    tokenised: Tokenised,
) -> Result<Batch> {
    let Tokenised { documents, texts, encodings } = tokenised;
    // A document without text would be a sentence of special tokens alone.
    let used = texts.into_iter().zip(encodings).filter(|(_, e)| e.special.contains(&false));
    let used: Vec<(Document, Encoding)> = used.collect();
    let packed = Packed::new(used.iter().map(|(_, e)| &e.ids));
    let mut dropped = Dropped::default();
    let mut keep: Vec<bool> =
        used.iter().flat_map(|(_, e)| source.rows.of_sentence(e, &mut dropped)).collect();
    let mut rows = vec![vec![]; hooks.len()];
    if packed.rows() > 0 {
        model.forward(&packed, hooks, &mut |hook, tensor| {
            let kept = keep.iter().enumerate().filter(|(_, keep)| **keep).map(|(row, _)| row);
            rows[hook] = host::gather(&tensor, kept)?;
            Ok(None)
        })?;
    }
    source.rows.drop_large(&mut keep, &mut rows, &mut dropped);
    let tokens_seen = packed.rows() as u64;
    let spans = packed.starts.windows(2);
    let sentences =
        used.into_iter().zip(spans).map(|(used, s)| sentence(used, &keep[s[0]..s[1]])).collect();
    Ok(Batch { documents, tokens_seen, dropped, sentences, rows })
}

/// A sentence's document, its text up to the last token, and its kept tokens.
pub fn sentence(
    (document, encoding): (Document, Encoding),
    keep: &[bool],
) -> (u64, String, Vec<Token>) {
    let mut text = document.text;
    let end = encoding.offsets.iter().map(|(_, end)| *end).max().unwrap_or(0);
    // Offsets come from the tokenizer; one within a character must not end the program.
    text.truncate(text.ceil_char_boundary(end));
    let token = |i: usize| Token {
        id: encoding.ids[i],
        position: i as u32,
        offset: [encoding.offsets[i].0 as u32, encoding.offsets[i].1 as u32],
    };
    let tokens = (0..encoding.ids.len()).filter(|i| keep[*i]).map(token).collect();
    (document.index, text, tokens)
}
