//! The numbers of candle tensors, where a plain loop can reach them.

use std::{
    cell::Cell,
    marker::PhantomData,
    ops::{Deref, Range},
};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, StorageRef, Tensor};
use rayon::prelude::*;

use super::panels::tile::COLUMNS;

/// The numbers of a contiguous f32 tensor in main memory.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => &[],
        }
    }
}

/// The tensor's numbers, if the loops of this module can read them.
pub(crate) fn view(tensor: &Tensor) -> Option<View<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (begin, end) = layout.contiguous_offsets()?;
    matches!(&*storage, Storage::Cpu(CpuStorage::F32(_)))
        .then(|| View { storage, range: begin..end })
}

/// Some rows of a tensor `[n, width]` of any device and float format, one after the other.
///
/// # Errors
/// What the device reports. A row that does not exist is the caller's mistake and panics.
pub(crate) fn gather(
    tensor: &Tensor,
    rows: impl Iterator<Item = usize> + Clone,
) -> Result<Vec<f32>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let values = view(&tensor).ok_or(candle_core::Error::RequiresContiguous { op: "rows" })?;
    let width = tensor.dim(1)?;
    let mut out = Vec::with_capacity(rows.clone().count() * width);
    rows.for_each(|row| out.extend_from_slice(&values[row * width..][..width]));
    Ok(out)
}

/// A tensor that owns `data`.
pub(super) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// A vector of `len` numbers, of which tasks write a chunk each; they are given the chunk's number
/// and zeros.
///
/// Each task clears its own chunk: one thread that cleared all of it would take a tenth of a
/// forward pass.
pub(super) fn by_chunks(
    len: usize,
    chunk: usize,
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    let parts = out.spare_capacity_mut()[..len].par_chunks_mut(chunk.max(1));
    parts.enumerate().for_each(|(i, part)| {
        part.iter_mut().for_each(|x| {
            x.write(0.0);
        });
        #[expect(unsafe_code, reason = "no safe way from written to initialised")]
        // SAFETY: each number was just written.
        write(i, unsafe { part.assume_init_mut() });
    });
    #[expect(unsafe_code, reason = "no safe way from written to initialised")]
    // SAFETY: the chunks cover `len` numbers, all written.
    unsafe {
        out.set_len(len);
    }
    out
}

/// Most numbers of scratch that a thread keeps: 16 MiB.
const KEPT: usize = 4 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Gives a task `len` numbers, whatever they are.
///
/// A thread keeps them for its next task: to clear fresh ones each time takes a hundredth of a forward
/// pass.
pub(super) fn with_scratch<R>(len: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = task(&mut scratch[..len]);
    if scratch.len() <= KEPT {
        SCRATCH.set(scratch);
    }
    result
}

/// Numbers that several tasks write at once, each its own part.
pub(super) struct Output<'a> {
    data: *mut f32,
    len: usize,
    _borrowed: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "tasks write interleaved columns, which slices cannot express")]
// SAFETY: the pointer is only used in `at` and `write`, whose callers keep to their own part.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// The numbers of a slice.
    pub fn over(out: &'a mut [f32]) -> Self {
        Self { data: out.as_mut_ptr(), len: out.len(), _borrowed: PhantomData }
    }

    /// A vector of `len` numbers that `write` has written.
    ///
    /// # Safety
    /// `write` writes each of them, and reads none before.
    #[expect(unsafe_code, reason = "clearing what is written anyway takes a tenth of a pass")]
    pub unsafe fn written(len: usize, write: impl FnOnce(&Self)) -> Vec<f32> {
        let mut out: Vec<f32> = Vec::with_capacity(len);
        write(&Self { data: out.as_mut_ptr(), len, _borrowed: PhantomData });
        // SAFETY: the caller vouches that all are written.
        unsafe { out.set_len(len) };
        out
    }

    /// The place of a number.
    pub fn at(&self, offset: usize) -> *mut f32 {
        self.data.wrapping_add(offset)
    }

    /// Writes a part that belongs to the calling task alone.
    ///
    /// # Panics
    /// If it does not lie inside.
    pub fn write(&self, offset: usize, part: &[f32]) {
        assert!(offset + part.len() <= self.len, "part of an output");
        // A length that is known is copied in place, any other by a call.
        match part.as_array::<COLUMNS>() {
            #[expect(unsafe_code, reason = "see above")]
            // SAFETY: the part lies inside the vector, and no other task writes or reads it.
            Some(part) => unsafe { self.at(offset).cast::<[f32; COLUMNS]>().write(*part) },
            #[expect(unsafe_code, reason = "see above")]
            // SAFETY: as above.
            None => unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), self.at(offset), part.len());
            },
        }
    }

    /// Adds to a part that belongs to the calling task alone.
    ///
    /// # Panics
    /// If it does not lie inside.
    pub fn add(&self, offset: usize, part: &[f32]) {
        assert!(offset + part.len() <= self.len, "part of an output");
        #[expect(unsafe_code, reason = "see above")]
        // SAFETY: as in `write`; an output that is added to was made over a slice.
        let out = unsafe { std::slice::from_raw_parts_mut(self.at(offset), part.len()) };
        out.iter_mut().zip(part).for_each(|(out, x)| *out += x);
    }
}
