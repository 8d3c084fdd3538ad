//! One file of a checkpoint, mapped: safetensors, or what `torch.save` wrote.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use memmap2::Mmap;
use safetensors::Dtype;

use super::super::ModelError;
use crate::torch::{self, Bytes, Checksums, TorchError, View, row_major};

/// A mapped file. A tensor that is never asked for is never read.
pub enum Shard {
    Safetensors(MmapedSafetensors),
    Torch { map: Mmap, views: BTreeMap<String, View> },
}

/// A tensor as it is stored, row-major.
pub struct Raw<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl Shard {
    /// Maps a file and checks what it says of its tensors.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.extension().is_some_and(|end| end == "safetensors") {
            safetensors(path)
        } else {
            torch(path)
        }
    }

    /// Name, format and shape of each tensor.
    pub fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        match self {
            Self::Safetensors(file) => {
                let tensors = file.tensors().into_iter();
                tensors.map(|(name, view)| (name, view.dtype(), view.shape().to_vec())).collect()
            }
            Self::Torch { views, .. } => {
                let tensors = views.iter();
                tensors.map(|(name, v)| (name.clone(), v.dtype, v.shape.clone())).collect()
            }
        }
    }

    /// A tensor's bytes.
    pub fn get(&self, name: &str) -> Option<Raw<'_>> {
        match self {
            Self::Safetensors(file) => {
                let view = file.get(name).ok()?;
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                Some(Raw { dtype, shape, bytes: view.data().into() })
            }
            Self::Torch { map, views } => {
                let view = views.get(name)?;
                let Bytes::Mapped(range) = &view.bytes else { return None };
                Some(Raw {
                    dtype: view.dtype,
                    shape: view.shape.clone(),
                    bytes: in_order(view, &map[range.clone()]),
                })
            }
        }
    }
}

impl Raw<'_> {
    /// The tensor, if it is of floats.
    pub fn tensor(&self, device: &Device) -> Option<candle_core::Result<Tensor>> {
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => return None,
        };
        Some(Tensor::from_raw_buffer(&self.bytes, dtype, &self.shape, device))
    }
}

/// The elements row by row, in place where they are stored so.
fn in_order<'a>(view: &View, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    let size = view.dtype.bitsize() / 8;
    if view.strides == row_major(&view.shape) {
        let count: usize = view.shape.iter().product();
        return bytes[..count * size].into();
    }
    match size {
        1 => view.elements_of::<1>(bytes).flatten().collect(),
        2 => view.elements_of::<2>(bytes).flatten().collect(),
        4 => view.elements_of::<4>(bytes).flatten().collect(),
        _ => view.elements_of::<8>(bytes).flatten().collect(),
    }
}

fn safetensors(path: &Path) -> Result<Shard, ModelError> {
    #[expect(unsafe_code, reason = "memory-mapping a file")]
    // SAFETY: checkpoints are not written to while they are in use; the header is checked against
    // the file's length here, so no read goes past its end.
    let opened = unsafe { MmapedSafetensors::new(path) };
    opened.map(Shard::Safetensors).map_err(|e| {
        let cause = match &e {
            candle_core::Error::WithPath { inner, .. } => inner.to_string(),
            other => other.to_string(),
        };
        ModelError::file(path, format!("not a complete safetensors file: {cause}"))
    })
}

fn torch(path: &Path) -> Result<Shard, ModelError> {
    let file = fs_err::File::open(path).map_err(|e| ModelError::file(path, e))?;
    #[expect(unsafe_code, reason = "memory-mapping a file")]
    // SAFETY: checkpoints are not written to while they are in use, and every range is checked
    // against the length of the map.
    let map = unsafe { Mmap::map(file.file()) }.map_err(|e| ModelError::file(path, e))?;
    let contents = torch::read(path, &map, Checksums::Trusted);
    let (views, _) = contents.map_err(|e| match e {
        TorchError::Format { path, reason } => ModelError::File { path, message: reason },
        legacy @ TorchError::Legacy { .. } => ModelError::Legacy { message: legacy.to_string() },
    })?;
    for (name, view) in &views {
        let Bytes::Mapped(range) = &view.bytes else { continue };
        if view.elements(range.len()).is_none() {
            let (shape, strides) = (&view.shape, &view.strides);
            let message = format!(
                "tensor `{name}` of shape {shape:?} and strides {strides:?} does not fit its {} bytes",
                range.len()
            );
            return Err(ModelError::file(path, message));
        }
    }
    Ok(Shard::Torch { map, views })
}
