//! The numbers of candle tensors, where a plain loop can reach them.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Result, Shape, Storage, StorageRef, Tensor};

/// The numbers of a contiguous f32 tensor in main memory.
pub(super) struct View<'a> {
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
pub(super) fn view(tensor: &Tensor) -> Option<View<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (begin, end) = layout.contiguous_offsets()?;
    matches!(&*storage, Storage::Cpu(CpuStorage::F32(_)))
        .then(|| View { storage, range: begin..end })
}

/// A tensor that owns `data`.
pub(super) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}
