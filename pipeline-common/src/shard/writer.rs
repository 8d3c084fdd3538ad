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
use crate::stage::atomic;

/// A shard under construction.
#[derive(Debug)]
pub struct ActivationWriter {
    hook: String,
    partial: PathBuf,
    file: BufWriter<fs_err::File>,
    metadata: Metadata,
    reserved: usize,
    scale: f32,
    stats: Stats,
    halves: Vec<f16>,
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
            stats: Stats::new(d_in),
            halves: Vec::new(),
        })
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.stats.rows
    }

    /// Appends rows, `[n, d_in]` row-major.
    ///
    /// # Errors
    /// [`ShardError::Overflow`] or [`ShardError::NotANumber`] with the row; I/O errors.
    pub fn append(&mut self, rows: &mut [f32]) -> Result<(), ShardError> {
        if self.scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= self.scale);
        }
        let mut halves = std::mem::take(&mut self.halves);
        halves.resize(rows.len(), f16::ZERO);
        halves.convert_from_f32_slice(rows);
        if let Some(bad) = halves.iter().position(|h| !h.is_finite()) {
            return Err(self.not_finite(bad / self.stats.sum.len(), rows[bad]));
        }
        let written = self.append_stored(&halves);
        self.halves = halves;
        written
    }

    /// Appends rows as they are stored: scaled, finite, f16.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn append_stored(&mut self, rows: &[f16]) -> Result<(), ShardError> {
        let d_in = self.stats.sum.len();
        // Statistics are of the numbers that a reader will see.
        let mut values = vec![0.0; d_in];
        for row in rows.chunks_exact(d_in) {
            row.convert_to_f32_slice(&mut values);
            self.stats.add(&values);
        }
        Ok(self.file.write_all(bytemuck::cast_slice(rows))?)
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

/// The padding keeps the f64 sums aligned, which PyTorch insists on.
fn specs(rows: usize, d_in: usize) -> [TensorSpec; 3] {
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
