//! The tensors of one file, whatever its container: names, shapes and types are checked as each
//! is taken, and what nobody took is an error.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use crate::{
    sae::SaeError,
    shard::format,
    torch::{Bytes, Scalar, View, row_major},
};

/// The tensors of a file that are not taken yet.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    map: Mmap,
    views: BTreeMap<String, View>,
    scalars: BTreeMap<String, Scalar>,
    narrow: Option<Dtype>,
}

impl Tensors {
    /// Collects what `read` finds in a file.
    ///
    /// # Errors
    /// I/O errors and those of `read`; tensors that do not lie within their bytes.
    pub fn open(
        path: &Path,
        read: impl FnOnce(&[u8]) -> Result<(BTreeMap<String, View>, BTreeMap<String, Scalar>), SaeError>,
    ) -> Result<Self, SaeError> {
        let map = format::map(path)?;
        let (views, scalars) = read(&map)?;
        let file = Self { path: path.to_owned(), map, views, scalars, narrow: None };
        for (name, view) in &file.views {
            let available = match &view.bytes {
                Bytes::Mapped(range) => range.len(),
                Bytes::Owned(bytes) => bytes.len(),
            };
            if view.elements(available).is_none() {
                let what = format!(
                    "tensor `{name}` of shape {:?} and strides {:?} does not fit its {available} \
                     bytes",
                    view.shape, view.strides
                );
                return Err(file.bad(what));
            }
        }
        Ok(file)
    }

    /// Opens a safetensors file.
    ///
    /// # Errors
    /// I/O errors; a header that does not cover the file.
    pub fn safetensors(path: &Path) -> Result<Self, SaeError> {
        Self::open(path, |bytes| {
            let bad = |reason: String| SaeError::Format { path: path.to_owned(), reason };
            let file = format::parse(path, bytes).map_err(|e| bad(e.to_string()))?;
            let view = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
                let begin = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                let (shape, dtype) = (view.shape().to_vec(), view.dtype());
                let bytes = Bytes::Mapped(begin..begin + view.data().len());
                (name, View { dtype, strides: row_major(&shape), shape, bytes })
            };
            Ok((file.tensors().into_iter().map(view).collect(), BTreeMap::new()))
        })
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.views.keys().map(String::as_str)
    }

    /// Whether there is a tensor or value of this name.
    pub fn has(&self, name: &str) -> bool {
        self.views.contains_key(name) || self.scalars.contains_key(name)
    }

    /// The two sizes of a matrix, still to be taken.
    ///
    /// # Errors
    /// If it is missing, is no matrix, or has no elements.
    pub fn matrix_shape(&self, name: &str) -> Result<(usize, usize), SaeError> {
        let view = self.views.get(name).ok_or_else(|| self.missing(name))?;
        match view.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
            _ => {
                Err(self
                    .bad(format!("tensor `{name}` has shape {:?}, expected a matrix", view.shape)))
            }
        }
    }

    /// Takes a tensor of this shape, row-major, widened to f32.
    ///
    /// # Errors
    /// If it is missing, or has another shape or type, or holds what is no finite number.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, SaeError> {
        let view = self.views.remove(name).ok_or_else(|| self.missing(name))?;
        if view.shape != shape {
            return Err(SaeError::Shape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape,
            });
        }
        if view.dtype != Dtype::F32 {
            self.narrow = Some(view.dtype);
        }
        let data = match view.dtype {
            Dtype::F32 => self.gather(&view, f32::from_le_bytes),
            Dtype::F16 => self.gather(&view, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.gather(&view, |b| bf16::from_le_bytes(b).to_f32()),
            other => {
                return Err(SaeError::Field {
                    path: self.path.clone(),
                    field: format!("the type of tensor `{name}`"),
                    found: format!("{other:?}"),
                    expected: "F32, F16 or BF16".into(),
                    hint: "save it again in one of these types",
                });
            }
        };
        match data.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.bad(format!("tensor `{name}` is {} at {at}", data[at]))),
            None => Ok(data),
        }
    }

    /// Takes a matrix of this shape and swaps its axes.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_transposed(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, SaeError> {
        if let Some(view) = self.views.get_mut(name)
            && view.shape == shape
        {
            view.shape.reverse();
            view.strides.reverse();
            return self.take(name, &[shape[1], shape[0]]);
        }
        self.take(name, &shape)
    }

    /// Takes one number, a tensor of one element or a value beside the tensors.
    ///
    /// # Errors
    /// If it is missing or not one finite number.
    pub fn take_number(&mut self, name: &str) -> Result<f64, SaeError> {
        let found = match self.scalars.remove(name) {
            Some(Scalar::Int(n)) => Some(n as f64),
            Some(Scalar::Float(x)) => Some(x),
            Some(_) => None,
            None => {
                let view = self.views.remove(name).ok_or_else(|| self.missing(name))?;
                let one = view.shape.iter().all(|n| *n == 1);
                one.then(|| number(view.dtype, self.bytes(&view))).flatten()
            }
        };
        match found {
            Some(x) if x.is_finite() => Ok(x),
            Some(x) => Err(self.bad(format!("`{name}` is {x}"))),
            None => Err(self.bad(format!("`{name}` is not one number"))),
        }
    }

    /// Takes a string.
    pub fn take_text(&mut self, name: &str) -> Option<String> {
        match self.scalars.remove(name) {
            Some(Scalar::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Ends the reading: nothing may be left but what is `ignored`, which changes no output.
    /// What was widened is the note it returns.
    ///
    /// # Errors
    /// Names of tensors and values that this format does not have.
    pub fn finish(self, ignored: &[&str]) -> Result<Option<String>, SaeError> {
        let left = self.views.keys().chain(self.scalars.keys());
        let foreign: Vec<&str> =
            left.map(String::as_str).filter(|name| !ignored.contains(name)).collect();
        if !foreign.is_empty() {
            return Err(SaeError::Field {
                path: self.path.clone(),
                field: format!("`{}`", foreign.join("`, `")),
                found: "in the file".into(),
                expected: "absent".into(),
                hint: "it may change what the SAE computes; SAE_FROM_FORMAT says what the file is",
            });
        }
        Ok(self
            .narrow
            .map(|dtype| format!("weights are stored as {dtype:?}, computed with in F32")))
    }

    /// The error for a name that is not there.
    fn missing(&self, name: &str) -> SaeError {
        let names = self.views.keys().chain(self.scalars.keys());
        let names: Vec<&str> = names.map(String::as_str).take(20).collect();
        self.bad(format!("`{name}` is missing; there are {}", names.join(", ")))
    }

    /// An error in this file.
    pub fn bad(&self, reason: String) -> SaeError {
        SaeError::Format { path: self.path.clone(), reason }
    }

    fn bytes<'a>(&'a self, view: &'a View) -> &'a [u8] {
        match &view.bytes {
            Bytes::Mapped(range) => &self.map[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The elements in row-major order.
    fn gather<const N: usize>(&self, view: &View, read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        view.elements_of(self.bytes(view)).map(read).collect()
    }
}

/// One number of any type.
fn number(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    Some(match dtype {
        Dtype::F64 => f64::from_le_bytes(*bytes.first_chunk()?),
        Dtype::F32 => f32::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::F16 => f16::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::BF16 => bf16::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::I64 => i64::from_le_bytes(*bytes.first_chunk()?) as f64,
        Dtype::I32 => i32::from_le_bytes(*bytes.first_chunk()?).into(),
        Dtype::I16 => i16::from_le_bytes(*bytes.first_chunk()?).into(),
        _ => return None,
    })
}
