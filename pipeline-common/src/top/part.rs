//! What one task of an array found in its share of the shards, as files that are joined in the end.
//!
//! `parts/<i>-of-<n>.safetensors` holds a [`Tally`], `parts/<i>-of-<n>.cuts` the [`Cut`] of each of its
//! rows, 8 bytes each. A part appears whole or not at all, and says by a digest what it is of: one that
//! is there and of the same is not made again. Tallies add up to the same numbers in any order, so the
//! result does not depend on the number of tasks.
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `fired` | U64 `[d_sae]` | rows in which each latent is active |
//! | `sum` | U64 `[d_sae, 2]` | sum of its activations, low and high half |
//! | `list` | U64 `[5 · d_sae + 2]` | first entry of each list, latent by latent, then of the sentences drawn from the run; the number of entries |
//! | `sentence`, `signature` | U64 `[entries]` | |
//! | `step` | U64 `[d_sae + 1]` | first count of each histogram, and their number |
//! | `count` | U64 `[counts]` | counts of all histograms |
//! | `max` | F32 `[d_sae]` | largest activations |
//! | `rank`, `value` | F32 `[entries]` | |
//! | `first` | I32 `[d_sae]` | first step of each histogram |
//! | `sketch` | I32 `[d_sae, width]` | |

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{
    output::Pending,
    pool::{Entry, Pool},
    record::Histogram,
    sketch::Sketch,
    tally::{Choice, LatentTally, Tally},
};
use crate::{
    sae::Cut,
    shard::{
        ShardError,
        format::{self, TensorSpec},
        tokens::column,
    },
    slurm::Share,
    stage::Result,
};

/// Where parts are, below the directory of the results.
pub(super) const DIRECTORY: &str = "parts";
/// The metadata key of what a part is of.
const DIGEST: &str = "digest";

/// A task's files.
#[derive(Clone, Debug)]
pub(super) struct PartFiles {
    tally: PathBuf,
    cuts: PathBuf,
    digest: String,
}

impl PartFiles {
    /// The files of a share of what `digest` describes, in the directory of the results.
    pub fn of(dir: &Path, share: Share, digest: &str) -> Self {
        let file = |extension: &str| {
            let name = format!("{}-of-{}.{extension}", share.index, share.count);
            dir.join(DIRECTORY).join(name)
        };
        Self { tally: file("safetensors"), cuts: file("cuts"), digest: digest.to_owned() }
    }

    /// Whether the part is there and is of the same.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn is_there(&self) -> Result<bool> {
        if !self.tally.is_file() || !self.cuts.is_file() {
            return Ok(false);
        }
        let map = format::map(&self.tally)?;
        let header = SafeTensors::read_metadata(&map).map_err(|e| self.bad(e.to_string()))?.1;
        let metadata = header.metadata().as_ref();
        Ok(metadata.and_then(|m| m.get(DIGEST)) == Some(&self.digest))
    }

    /// A file for the cuts of the part's rows.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn cuts_writer(&self) -> Result<CutsWriter> {
        if let Some(dir) = self.cuts.parent() {
            fs_err::create_dir_all(dir)?;
        }
        Ok(CutsWriter(Pending::create(self.cuts.clone())?))
    }

    /// Writes the tally; its cuts are committed before.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, tally: &Tally) -> Result<()> {
        let columns = Columns::of(tally);
        let d_sae = tally.latents.len();
        let spec = |name, dtype, shape: &[usize]| TensorSpec { name, dtype, shape: shape.to_vec() };
        let Columns { fired, sum, max, list, entries, first, step, count } = &columns;
        let sentence: Vec<u64> = entries.iter().map(|e| e.sentence).collect();
        let signature: Vec<u64> = entries.iter().map(|e| e.signature).collect();
        let rank: Vec<f32> = entries.iter().map(|e| e.rank).collect();
        let value: Vec<f32> = entries.iter().map(|e| e.value).collect();
        let n = entries.len();
        let counts = tally.sketch.counts();
        let tensors: [(TensorSpec<'_>, &[u8]); 12] = [
            (spec("fired", Dtype::U64, &[d_sae]), bytemuck::cast_slice(fired)),
            (spec("sum", Dtype::U64, &[d_sae, 2]), bytemuck::cast_slice(sum)),
            (spec("list", Dtype::U64, &[list.len()]), bytemuck::cast_slice(list)),
            (spec("sentence", Dtype::U64, &[n]), bytemuck::cast_slice(&sentence)),
            (spec("signature", Dtype::U64, &[n]), bytemuck::cast_slice(&signature)),
            (spec("step", Dtype::U64, &[step.len()]), bytemuck::cast_slice(step)),
            (spec("count", Dtype::U64, &[count.len()]), bytemuck::cast_slice(count)),
            (spec("max", Dtype::F32, &[d_sae]), bytemuck::cast_slice(max)),
            (spec("rank", Dtype::F32, &[n]), bytemuck::cast_slice(&rank)),
            (spec("value", Dtype::F32, &[n]), bytemuck::cast_slice(&value)),
            (spec("first", Dtype::I32, &[d_sae]), bytemuck::cast_slice(first)),
            (
                spec("sketch", Dtype::I32, &[d_sae, counts.len() / d_sae.max(1)]),
                bytemuck::cast_slice(counts),
            ),
        ];
        let metadata = vec![(DIGEST.to_owned(), self.digest.clone())];
        Ok(format::write_file(&self.tally, &tensors, &metadata)?)
    }

    /// Reads the tally.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn read(&self, d_sae: usize, choice: Choice) -> Result<Tally> {
        let path = &self.tally;
        let map = format::map(path)?;
        let file = format::parse(path, &map)?;
        let entries = Columns::entries(path, &file)?;
        let columns = Columns {
            fired: column(path, &file, "fired")?,
            sum: column(path, &file, "sum")?,
            max: column(path, &file, "max")?,
            list: column(path, &file, "list")?,
            entries,
            first: column(path, &file, "first")?,
            step: column(path, &file, "step")?,
            count: column(path, &file, "count")?,
        };
        let sketch = Sketch::from_counts(d_sae, column(path, &file, "sketch")?);
        let latents = columns.latents(d_sae, &choice);
        let (Some(sketch), Some((latents, drawn))) = (sketch, latents) else {
            return Err(self.bad("its columns do not fit one another".into()).into());
        };
        Ok(Tally { choice, latents, sketch, drawn })
    }

    /// The cuts of `rows` rows.
    ///
    /// # Errors
    /// A file that is missing or has another length.
    pub fn cuts(&self, rows: usize) -> Result<Cuts> {
        let (path, bytes) = (&self.cuts, rows * size_of::<Cut>());
        let found = fs_err::metadata(path)?.len();
        if found != bytes as u64 {
            let reason = format!("it has {found} bytes, expected {bytes}");
            return Err(ShardError::Format { path: path.clone(), reason }.into());
        }
        // An empty file cannot be mapped.
        Ok(Cuts((rows > 0).then(|| format::map(path)).transpose()?))
    }

    fn bad(&self, reason: String) -> ShardError {
        ShardError::Format { path: self.tally.clone(), reason }
    }
}

/// The cuts of a part's rows, mapped.
#[derive(Debug)]
pub(super) struct Cuts(Option<Mmap>);

impl Cuts {
    /// All of them, in the order of the part's rows.
    pub fn all(&self) -> &[Cut] {
        self.0.as_deref().map_or(&[], |bytes| bytemuck::cast_slice(bytes))
    }
}

/// Cuts on their way to their file.
pub(super) struct CutsWriter(Pending);

impl CutsWriter {
    pub fn push(&mut self, cuts: &[Cut]) -> Result<()> {
        Ok(self.0.write_all(bytemuck::cast_slice(cuts))?)
    }

    pub fn commit(self) -> Result<()> {
        self.0.commit()
    }
}

/// A tally as columns.
struct Columns {
    fired: Vec<u64>,
    sum: Vec<[u64; 2]>,
    max: Vec<f32>,
    list: Vec<u64>,
    entries: Vec<Entry>,
    first: Vec<i32>,
    step: Vec<u64>,
    count: Vec<u64>,
}

impl Columns {
    fn of(tally: &Tally) -> Self {
        let latents = &tally.latents;
        let (mut list, mut entries) = (vec![0], vec![]);
        let lists = latents.iter().flat_map(LatentTally::pools).chain([&tally.drawn]);
        for pool in lists {
            entries.extend_from_slice(pool.entries());
            list.push(entries.len() as u64);
        }
        let (mut step, mut count) = (vec![0], vec![]);
        for latent in latents {
            count.extend_from_slice(&latent.histogram.counts);
            step.push(count.len() as u64);
        }
        Self {
            fired: latents.iter().map(|l| l.fired).collect(),
            sum: latents.iter().map(|l| [l.sum as u64, (l.sum >> 64) as u64]).collect(),
            max: latents.iter().map(|l| l.max).collect(),
            list,
            entries,
            first: latents.iter().map(|l| l.histogram.first).collect(),
            step,
            count,
        }
    }

    fn entries(path: &Path, file: &SafeTensors<'_>) -> Result<Vec<Entry>> {
        let sentence: Vec<u64> = column(path, file, "sentence")?;
        let signature: Vec<u64> = column(path, file, "signature")?;
        let rank: Vec<f32> = column(path, file, "rank")?;
        let value: Vec<f32> = column(path, file, "value")?;
        let each = sentence.iter().zip(&signature).zip(rank.iter().zip(&value));
        let entry = |((sentence, signature), (rank, value)): ((&u64, &u64), (&f32, &f32))| Entry {
            sentence: *sentence,
            signature: *signature,
            rank: *rank,
            value: *value,
        };
        Ok(each.map(entry).collect())
    }

    /// The latents, and the sentences drawn from the run; `None` if the columns do not fit.
    fn latents(&self, d_sae: usize, choice: &Choice) -> Option<(Vec<LatentTally>, Pool)> {
        let lengths = [
            self.fired.len(),
            self.sum.len(),
            self.max.len(),
            self.first.len(),
            self.step.len() - 1,
        ];
        if lengths != [d_sae; 5] || self.list.len() != 5 * d_sae + 2 {
            return None;
        }
        let pool = |i: usize, n: usize| {
            let entries = self.entries.get(self.list[i] as usize..self.list[i + 1] as usize)?;
            let mut pool = Pool::default();
            entries.iter().for_each(|entry| pool.offer(*entry, n));
            Some(pool)
        };
        let mut latents = vec![LatentTally::default(); d_sae];
        for (l, latent) in latents.iter_mut().enumerate() {
            let counts = self.count.get(self.step[l] as usize..self.step[l + 1] as usize)?;
            latent.histogram = Histogram { first: self.first[l], counts: counts.to_vec() };
            (latent.fired, latent.max) = (self.fired[l], self.max[l]);
            let [low, high] = self.sum[l];
            latent.sum = u128::from(high) << 64 | u128::from(low);
            for (i, (list, n)) in latent.pools_mut(choice).into_iter().enumerate() {
                *list = pool(5 * l + i, n)?;
            }
        }
        Some((latents, pool(5 * d_sae, Choice::SILENT)?))
    }
}
