//! Files of tensors that PyTorch wrote with `torch.save`, from 1.6 on, read in place: a zip archive of a
//! pickle and of one file for each storage. Nothing that a pickle holds is run.

pub mod archive;
pub mod pickle;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use safetensors::Dtype;

use archive::Archive;
use pickle::{Item, Stored};

/// How a file begins that PyTorch before 1.6 saved: a pickle of its magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// It is not what its name says.
    #[error("`{}`: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It has a format that PyTorch wrote before 1.6.
    #[error("`{}`: the file's format is PyTorch's before 1.6, expected a zip archive", path.display())]
    Legacy {
        /// The file.
        path: PathBuf,
    },
}

/// Where a tensor's bytes are.
#[derive(Debug)]
pub enum Bytes {
    /// In the mapped file.
    Mapped(Range<usize>),
    /// Decompressed.
    Owned(Vec<u8>),
}

/// One tensor as it is stored.
#[derive(Debug)]
pub struct View {
    /// Element type.
    pub dtype: Dtype,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each axis.
    pub strides: Vec<usize>,
    /// From its first element on.
    pub bytes: Bytes,
}

/// Strides of a row-major tensor; those of a shape beyond `usize` are never used.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

impl View {
    /// Number of elements, where they lie without gaps or overlaps in any order of axes, and
    /// within `available` bytes: so that a small file never makes a large tensor.
    pub fn elements(&self, available: usize) -> Option<usize> {
        let mut axes: Vec<(usize, usize)> =
            self.strides.iter().copied().zip(self.shape.iter().copied()).collect();
        axes.retain(|(_, size)| *size != 1);
        axes.sort_unstable();
        let mut elements = 1_usize;
        for (stride, size) in axes {
            if stride != elements && size != 0 {
                return None;
            }
            elements = elements.checked_mul(size)?;
        }
        let bytes = elements.checked_mul(self.dtype.bitsize() / 8)?;
        (bytes <= available).then_some(elements)
    }

    /// The elements among its bytes, in row-major order; N is an element's size.
    pub fn elements_of<'a, const N: usize>(
        &'a self,
        bytes: &'a [u8],
    ) -> Box<dyn Iterator<Item = [u8; N]> + 'a> {
        let (elements, _) = bytes.as_chunks::<N>();
        let count = self.shape.iter().product();
        if self.strides == row_major(&self.shape) {
            return Box::new(elements[..count].iter().copied());
        }
        let mut index = vec![0; self.shape.len()];
        Box::new((0..count).map(move |_| {
            let at: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
            elements[at]
        }))
    }
}

/// A value beside the tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// An integer or a boolean.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
    /// Something else.
    Other,
}

/// Tensors and plain values of a file, by name.
pub type Contents = (BTreeMap<String, View>, BTreeMap<String, Scalar>);

/// Whether checksums are compared, for which all of a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Of every storage.
    Compared,
    /// Of none.
    Trusted,
}

/// The dictionary of tensors in a file's bytes.
///
/// # Errors
/// What is no such file; a pickle that asks for anything else.
pub fn read(path: &Path, bytes: &[u8], checksums: Checksums) -> Result<Contents, TorchError> {
    if bytes.starts_with(LEGACY) {
        return Err(TorchError::Legacy { path: path.to_owned() });
    }
    let archive = Archive::open(path, bytes)?;
    let pickles = archive.names().filter_map(|name| name.strip_suffix("/data.pkl"));
    let [root] = pickles.collect::<Vec<_>>()[..] else {
        return Err(archive.bad("it holds no `data.pkl` of torch.save, or several".into()));
    };
    let order = format!("{root}/byteorder");
    if archive.names().any(|name| name == order)
        && archive.slice(&archive.read(&order)?) != b"little"
    {
        return Err(archive.bad("its numbers are not little-endian".into()));
    }
    let contents = archive.read(&format!("{root}/data.pkl"))?;
    let items = pickle::read(archive.slice(&contents)).map_err(|e| {
        archive.bad(format!("{e}; expected a dictionary of tensors, as a state_dict() is"))
    })?;
    let (mut views, mut scalars) = (BTreeMap::new(), BTreeMap::new());
    for (name, item) in items {
        match item {
            Item::Tensor(stored) => {
                let view = view(&archive, root, stored, checksums)?;
                views.insert(name, view);
            }
            Item::Value(value) => {
                scalars.insert(name, value);
            }
        }
    }
    Ok((views, scalars))
}

fn view(
    archive: &Archive<'_>,
    root: &str,
    stored: Stored,
    checksums: Checksums,
) -> Result<View, TorchError> {
    let Stored { key, dtype, offset, shape, strides } = stored;
    let file = format!("{root}/data/{key}");
    let range = archive.place(&file)?;
    if checksums == Checksums::Compared {
        archive.read(&file)?;
    }
    let begin = offset.checked_mul(dtype.bitsize() / 8);
    let begin = begin.filter(|begin| *begin <= range.len());
    let Some(begin) = begin else {
        return Err(archive.bad(format!("a tensor begins behind the end of `{file}`")));
    };
    let bytes = Bytes::Mapped(range.start + begin..range.end);
    Ok(View { dtype, shape, strides, bytes })
}
