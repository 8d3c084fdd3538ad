//! The streams on disk: one file a stream, one line a document, `{"text": ...}`.
//!
//! A file appears whole; one that is there was written by an earlier start of the same
//! preparation and is kept.

use std::{
    io::{BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{record::StreamFile, survey::STEP};
use crate::{
    shard::ShardFile,
    stage::{Context, Progress, Result, atomic},
    text::{Contexts, Dataset, Streams},
};

/// A line of a stream.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
}

/// Writes the streams that are not there yet.
///
/// # Errors
/// Anything wrong with a document; I/O errors; a request to stop.
pub fn write(
    run_dir: &Path,
    streams: &Streams,
    dataset: &Dataset,
    contexts: &Contexts,
    context: &Context,
) -> Result<Vec<StreamFile>> {
    fs_err::create_dir_all(run_dir.join("streams"))?;
    let mut progress = context.progress("writing", streams.documents, "documents").of_bytes();
    let mut files = Vec::new();
    for stream in 0..streams.count {
        let path = path(run_dir, stream);
        let range = streams.range(stream);
        let documents = range.end - range.start;
        if path.exists() {
            progress.advance(documents, 0, "");
        } else {
            let source = Source { dataset, contexts, context };
            source.write(&path, range, &mut progress)?;
        }
        files.push(StreamFile { documents, file: ShardFile::of(&path, run_dir)? });
        context.leave_if_asked(&format!(
            "{} of {} streams are written",
            stream + 1,
            streams.count
        ))?;
    }
    progress.finish("");
    Ok(files)
}

fn path(run_dir: &Path, stream: u64) -> PathBuf {
    run_dir.join("streams").join(format!("stream-{stream}.jsonl"))
}

struct Source<'a> {
    dataset: &'a Dataset,
    contexts: &'a Contexts,
    context: &'a Context,
}

impl Source<'_> {
    fn write(&self, path: &Path, range: Range<u64>, progress: &mut Progress) -> Result<()> {
        let partial = atomic::partial_path(path);
        let mut out = BufWriter::new(fs_err::File::create(&partial)?);
        let (mut counted, mut written) = (0, 0);
        for document in self.dataset.documents(range)? {
            let document = self.contexts.render(document?)?;
            let line = serde_json::to_string(&Line { text: &document.text });
            let line = line.map_err(std::io::Error::from)?;
            writeln!(out, "{line}")?;
            written += line.len() as u64 + 1;
            counted += 1;
            if counted == STEP {
                progress.advance(std::mem::take(&mut counted), std::mem::take(&mut written), "");
                self.context.leave_if_asked("the stream that was being written begins anew")?;
            }
        }
        progress.advance(counted, written, "");
        out.flush()?;
        Ok(atomic::commit(&partial, path)?)
    }
}
