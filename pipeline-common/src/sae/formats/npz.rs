//! `numpy.savez` archives: `.npy` files in a zip, compressed or not. Arrays of objects, which are
//! pickles, are refused.

use std::{collections::BTreeMap, path::Path};

use safetensors::Dtype;

use super::tensors::Tensors;
use crate::{
    sae::SaeError,
    torch::{Bytes, View, archive::Archive, row_major},
};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Opens an archive.
///
/// # Errors
/// I/O errors; what is no archive of arrays.
pub fn open(path: &Path) -> Result<Tensors, SaeError> {
    Tensors::open(path, |bytes| {
        let archive = Archive::open(path, bytes)?;
        let mut views = BTreeMap::new();
        for name in archive.names() {
            let contents = archive.read(name)?;
            let array = name.strip_suffix(".npy");
            let view = array.and_then(|_| parse(archive.slice(&contents)));
            let Some((begin, mut view)) = view else {
                return Err(SaeError::from(archive.bad(format!(
                    "`{name}` is no array of little-endian numbers that NumPy saved"
                ))));
            };
            view.bytes = match contents {
                Bytes::Mapped(range) => Bytes::Mapped(range.start + begin..range.end),
                Bytes::Owned(bytes) => Bytes::Owned(bytes[begin..].to_vec()),
            };
            views.insert(array.unwrap_or(name).to_owned(), view);
        }
        Ok((views, BTreeMap::new()))
    })
}

/// Where an array's elements begin, and what they are; their bytes are left to the caller.
fn parse(file: &[u8]) -> Option<(usize, View)> {
    let version = file.strip_prefix(MAGIC)?.first_chunk::<2>()?;
    let (begin, length) = match version[0] {
        1 => (10, u16::from_le_bytes(*file.get(8..)?.first_chunk()?).into()),
        2 | 3 => (12, u32::from_le_bytes(*file.get(8..)?.first_chunk()?) as usize),
        _ => return None,
    };
    let header = std::str::from_utf8(file.get(begin..)?.get(..length)?).ok()?;
    let dtype = match after(header, "'descr':")?.strip_prefix('\'')?.split('\'').next()? {
        "<f2" => Dtype::F16,
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        "<i4" => Dtype::I32,
        "<i8" => Dtype::I64,
        _ => return None,
    };
    let fortran = after(header, "'fortran_order':")?.starts_with("True");
    let sizes = after(header, "'shape':")?.strip_prefix('(')?.split(')').next()?;
    let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape: Vec<usize> = sizes.map(|size| size.parse().ok()).collect::<Option<_>>()?;
    let strides = if fortran {
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        row_major(&reversed).into_iter().rev().collect()
    } else {
        row_major(&shape)
    };
    Some((begin + length, View { dtype, shape, strides, bytes: Bytes::Mapped(0..0) }))
}

/// What follows a key of the header, blanks left out.
fn after<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    Some(header.split_once(key)?.1.trim_start())
}
