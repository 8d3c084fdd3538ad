//! Writes the activations of one hook, row by row, as f16.
//!
//! Rows go to `<name>.partial` as they come; `finish` writes the sum, then the header, and
//! gives the file its name. Memory: one batch of rows.

use std::{
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

use super::{
    HookFile, ShardError, ShardFile, Stats,
    format::{self, Metadata, TensorSpec},
};
use crate::{kernels::vector::simd, stage::atomic};

/// A shard under construction.
#[derive(Debug)]
pub struct ActivationWriter {
    hook: String,
    partial: PathBuf,
    file: BufWriter<fs_err::File>,
    metadata: Metadata,
    reserved: usize,
    scale: f32,
    saturate: bool,
    stats: Stats,
    halves: Vec<f16>,
}

/// A value that did not fit and was stored as the largest f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturated {
    /// Its row in the shard, from 0.
    pub row: u64,
    /// The value.
    pub value: f32,
}

impl ActivationWriter {
    /// Begins `<path>.partial`; rows are `d_in` wide and multiplied by `scale` before rounding to f16.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn create(
        path: &Path,
        hook: &str,
        d_in: usize,
        scale: f32,
        metadata: Metadata,
    ) -> Result<Self, ShardError> {
        // Room for the longest row count, so that the payload's place is known beforehand.
        let reserved = format::header(&specs(u32::MAX as usize, d_in), &metadata, 0).len();
        let partial = atomic::partial_path(path);
        let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(&partial)?);
        file.write_all(&vec![0; reserved])?;
        Ok(Self {
            hook: hook.to_owned(),
            partial,
            file,
            metadata,
            reserved,
            scale,
            saturate: false,
            stats: Stats::new(d_in),
            halves: Vec::new(),
        })
    }

    /// The hook's module path.
    pub fn hook(&self) -> &str {
        &self.hook
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.stats.rows
    }

    /// Stores finite values that do not fit as the largest f16 and counts them, instead of failing.
    #[must_use]
    pub fn saturating(self, saturate: bool) -> Self {
        Self { saturate, ..self }
    }

    /// Appends rows, `[n, d_in]` row-major; the first of them that was saturated, if any was.
    ///
    /// # Errors
    /// [`ShardError::Overflow`] or [`ShardError::NotANumber`] with the row; I/O errors.
    pub fn append(&mut self, rows: &mut [f32]) -> Result<Option<Saturated>, ShardError> {
        if self.scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= self.scale);
        }
        let mut halves = std::mem::take(&mut self.halves);
        halves.resize(rows.len(), f16::ZERO);
        halves.convert_from_f32_slice(rows);
        // Statistics are of the numbers that a reader will see.
        let first = if all_finite(&halves) { None } else { self.saturate(rows, &mut halves)? };
        halves.convert_to_f32_slice(rows);
        self.stats.add(rows);
        let written = self.file.write_all(bytemuck::cast_slice(&halves));
        self.halves = halves;
        written?;
        Ok(first)
    }

    /// Appends rows as they are stored: scaled, finite, f16; `stats` are theirs.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn append_stored(&mut self, rows: &[f16], stats: &Stats) -> Result<(), ShardError> {
        let d_in = self.stats.sum.len();
        let mut values = vec![0.0; d_in];
        for row in rows.chunks_exact(d_in) {
            row.convert_to_f32_slice(&mut values);
            self.stats.add(&values);
        }
        self.stats.saturated += stats.saturated;
        self.stats.saturated_rows += stats.saturated_rows;
        Ok(self.file.write_all(bytemuck::cast_slice(rows))?)
    }

    /// Replaces infinities that were finite by the largest f16.
    fn saturate(
        &mut self,
        rows: &[f32],
        halves: &mut [f16],
    ) -> Result<Option<Saturated>, ShardError> {
        let d_in = self.stats.sum.len();
        let mut first = None;
        for (row, (values, halves)) in rows.chunks(d_in).zip(halves.chunks_mut(d_in)).enumerate() {
            let before = self.stats.saturated;
            for (value, half) in values.iter().zip(halves).filter(|(_, h)| !h.is_finite()) {
                if !self.saturate || !value.is_finite() {
                    return Err(self.not_finite(row, *value));
                }
                *half = f16::MAX.copysign(*half);
                self.stats.saturated += 1;
                let row = self.stats.rows + row as u64;
                first.get_or_insert(Saturated { row, value: *value });
            }
            self.stats.saturated_rows += u64::from(self.stats.saturated > before);
        }
        Ok(first)
    }

    fn not_finite(&self, row: usize, value: f32) -> ShardError {
        let (hook, row) = (self.hook.clone(), self.stats.rows + row as u64);
        if value.is_nan() {
            ShardError::NotANumber { hook, row }
        } else {
            ShardError::Overflow { hook, row, value }
        }
    }

    /// Makes the file durable as `path`, in the directory it was created in; `root` is what
    /// manifest paths are relative to.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn finish(mut self, path: &Path, root: &Path) -> Result<HookFile, ShardError> {
        let specs = specs(self.stats.rows as usize, self.stats.sum.len());
        self.file.write_all(&vec![0; specs[1].bytes()])?;
        self.file.write_all(bytemuck::cast_slice(&self.stats.sum))?;
        let header = format::header(&specs, &self.metadata, self.reserved);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        self.file.flush()?;
        atomic::commit(&self.partial, path)?;
        Ok(HookFile { hook: self.hook, file: ShardFile::of(path, root)?, stats: self.stats })
    }
}

fn all_finite(halves: &[f16]) -> bool {
    const EXPONENT: u16 = 0x7c00;
    // A maximum vectorises, a search that stops early does not.
    let largest = simd(
        #[inline(always)]
        || halves.iter().fold(0, |m, h| (h.to_bits() & EXPONENT).max(m)),
    );
    largest < EXPONENT
}

/// The padding keeps the f64 sums aligned, which PyTorch insists on.
fn specs(rows: usize, d_in: usize) -> [TensorSpec<'static>; 3] {
    let spec = |name, dtype, shape: &[usize]| TensorSpec { name, dtype, shape: shape.to_vec() };
    let activations = spec("activations", Dtype::F16, &[rows, d_in]);
    let padding = activations.bytes().next_multiple_of(8) - activations.bytes();
    [activations, spec("padding", Dtype::U8, &[padding]), spec("sum", Dtype::F64, &[d_in])]
}

impl ShardFile {
    /// Length and digest of a file just written under `root`.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn of(path: &Path, root: &Path) -> Result<Self, ShardError> {
        let (blake3, bytes) = format::digest(path)?;
        let relative = path.strip_prefix(root).unwrap_or(path);
        Ok(Self { path: relative.to_string_lossy().into_owned(), bytes, blake3 })
    }
}
