//! The files of one shard against its manifest line.

use std::path::Path;

use half::{f16, slice::HalfFloatSliceExt};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{
    finding::{Damage, Finding, ShardId},
    run::Run,
};
use crate::{
    capture::meta::HookRecord,
    shard::{Committed, HookFile, ShardError, ShardFile, Stats, TokenFile, format},
};

/// One file to read.
#[derive(Clone, Copy, Debug)]
pub enum Job<'a> {
    /// A shard's token file.
    Tokens(&'a Committed),
    /// A hook's activations.
    Activations(&'a Committed, &'a HookFile, &'a HookRecord),
}

impl<'a> Job<'a> {
    /// What the manifest says of the file.
    pub fn file(&self) -> &'a ShardFile {
        match self {
            Self::Tokens(line) => &line.tokens,
            Self::Activations(_, hook, _) => &hook.file,
        }
    }

    fn line(&self) -> &'a Committed {
        match self {
            Self::Tokens(line) | Self::Activations(line, ..) => line,
        }
    }

    /// Everything that is wrong with the file; `fast` leaves its payload unread.
    pub fn check(&self, run: &Run, fast: bool) -> Vec<Finding> {
        let line = self.line();
        let shard = ShardId { worker: line.worker, shard: line.shard };
        let mut check = Check { file: self.file(), shard, fast, findings: vec![] };
        let path = run.dir.join(&self.file().path);
        if let Some(map) = check.open(&path) {
            match self {
                Self::Tokens(line) => check.tokens(&path, &map, line, run),
                Self::Activations(line, stored, hook) => {
                    check.activations(&path, &map, line, (stored, hook), run);
                }
            }
        }
        check.findings
    }
}

struct Check<'a> {
    file: &'a ShardFile,
    shard: ShardId,
    fast: bool,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn add(&mut self, kind: Damage, detail: impl Into<String>) {
        let (file, shard) = (self.file.path.clone(), Some(self.shard));
        self.findings.push(Finding { kind, file, shard, detail: detail.into() });
    }

    fn equal<T: PartialEq + std::fmt::Display>(
        &mut self,
        kind: Damage,
        what: &str,
        expected: T,
        found: T,
    ) {
        if expected != found {
            self.add(kind, format!("{what} is {found}, expected {expected}"));
        }
    }

    /// Maps the file if it is there, of the right length and its bytes worth a closer look.
    fn open(&mut self, path: &Path) -> Option<Mmap> {
        let map = match format::map(path) {
            Ok(map) => map,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.add(Damage::Missing, "the file does not exist");
                return None;
            }
            Err(e) => {
                self.add(Damage::Unreadable, e.to_string());
                return None;
            }
        };
        if map.len() as u64 != self.file.bytes {
            let (found, expected) = (map.len(), self.file.bytes);
            self.add(Damage::Length, format!("{found} bytes, expected {expected}"));
            return None;
        }
        if !self.fast {
            let digest = format::digest_bytes(&map);
            self.equal(Damage::Digest, "blake3", self.file.blake3.clone(), digest);
        }
        Some(map)
    }

    fn tokens(&mut self, path: &Path, map: &Mmap, line: &Committed, run: &Run) {
        self.metadata(map, &[("run", run.meta.run_id.clone())]);
        let tokens = match TokenFile::open(path) {
            Ok(tokens) => tokens,
            Err(e) => return self.add(Damage::Header, reason(e)),
        };
        self.equal(Damage::Rows, "number of rows", line.rows, tokens.rows() as u64);
        let sentences = tokens.sentences() as u64;
        self.equal(Damage::Rows, "number of sentences", line.sentences, sentences);
        let mut next = line.first_document;
        for sentence in 0..tokens.sentences() {
            let document = tokens.document(sentence);
            if document < next || document >= line.end_document {
                let range = format!("{}..{}", line.first_document, line.end_document);
                let what = format!("sentence {sentence} is of document {document}");
                return self.add(
                    Damage::Documents,
                    format!("{what}, expected {next} or a later one of {range}"),
                );
            }
            next = document;
        }
    }

    fn activations(
        &mut self,
        path: &Path,
        map: &Mmap,
        line: &Committed,
        (stored, hook): (&HookFile, &HookRecord),
        run: &Run,
    ) {
        let scale = run.meta.activation_scale.to_string();
        let run_id = run.meta.run_id.clone();
        self.metadata(map, &[("hook", hook.name.clone()), ("scale", scale), ("run", run_id)]);
        let payload = match payload(path, map, hook.d_in) {
            Ok(payload) => payload,
            Err(detail) => return self.add(Damage::Header, detail),
        };
        let rows = (payload.values.len() / hook.d_in) as u64;
        self.equal(Damage::Rows, "number of rows", line.rows, rows);
        if !self.fast {
            self.values(&payload, stored, hook.d_in);
        }
    }

    fn metadata(&mut self, map: &Mmap, expected: &[(&str, String)]) {
        // A header that cannot be read is found by those who read the tensors.
        let Ok((_, header)) = SafeTensors::read_metadata(map) else { return };
        let found = header.metadata().as_ref();
        for (key, value) in expected {
            let stored = found.and_then(|pairs| pairs.get(*key)).map_or("missing", String::as_str);
            self.equal(Damage::Metadata, &format!("`{key}`"), value.as_str(), stored);
        }
    }

    fn values(&mut self, payload: &Payload<'_>, stored: &HookFile, d_in: usize) {
        let bad = |value: &f16| !value.is_finite();
        if let Some(first) = payload.values.iter().position(bad) {
            let count = payload.values.iter().filter(|value| bad(value)).count();
            let row = first / d_in;
            let what = format!("{count} values are NaN or infinite, the first in row {row}");
            return self.add(Damage::NotFinite, what);
        }
        let mut stats = Stats::new(d_in);
        let mut row = vec![0.0; d_in];
        for halves in payload.values.chunks_exact(d_in) {
            halves.convert_to_f32_slice(&mut row);
            stats.add(&row);
        }
        if stats.sum != payload.sum {
            self.add(Damage::Statistics, "`sum` is not the sum of the rows");
        }
        stats.sum.clear();
        let stored = Stats { sum: vec![], ..stored.stats };
        if stats != stored {
            self.add(Damage::Statistics, format!("the rows have {stats:?}, expected {stored:?}"));
        }
    }
}

/// Rows, `[rows, d_in]`, and their sum.
struct Payload<'a> {
    values: &'a [f16],
    sum: Vec<f64>,
}

fn payload<'a>(path: &Path, map: &'a Mmap, d_in: usize) -> Result<Payload<'a>, String> {
    let file = format::parse(path, map).map_err(reason)?;
    let tensor = |name: &str, dtype: Dtype| {
        let view = file.tensor(name).map_err(|e| format!("tensor `{name}`: {e}"))?;
        if view.dtype() == dtype {
            Ok(view)
        } else {
            Err(format!("`{name}` is {:?}, expected {dtype:?}", view.dtype()))
        }
    };
    let (activations, sum) = (tensor("activations", Dtype::F16)?, tensor("sum", Dtype::F64)?);
    match (activations.shape(), sum.shape()) {
        ([_, width], [length]) if *width == d_in && *length == d_in && d_in > 0 => {}
        (shape, sums) => {
            return Err(format!(
                "`activations` is {shape:?} and `sum` {sums:?}, expected [rows, {d_in}] and [{d_in}]"
            ));
        }
    }
    let values = bytemuck::try_cast_slice(activations.data())
        .map_err(|_| "`activations` begins at an odd byte".to_owned())?;
    let sums = sum.data().chunks_exact(size_of::<f64>());
    Ok(Payload { values, sum: sums.map(bytemuck::pod_read_unaligned).collect() })
}

/// What is wrong, without the path that the finding names.
fn reason(error: ShardError) -> String {
    match error {
        ShardError::Format { reason, .. } => reason,
        other => other.to_string(),
    }
}
