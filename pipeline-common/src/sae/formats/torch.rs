//! `.pt` files of PyTorch 1.6 and later.

use std::{
    borrow::Cow,
    io::{BufWriter, Write},
    path::Path,
};

use zip::{CompressionMethod, ZipWriter, result::ZipResult, write::SimpleFileOptions};

use super::tensors::Tensors;
use crate::{
    sae::SaeError,
    stage::atomic,
    torch::{self, Checksums, row_major},
};

/// Where torch lets storages begin, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Opens a file that holds a dictionary of tensors.
///
/// # Errors
/// I/O errors; what is no such file; a pickle that asks for anything else.
pub fn open(path: &Path) -> Result<Tensors, SaeError> {
    Tensors::open(path, |bytes| Ok(torch::read(path, bytes, Checksums::Compared)?))
}

/// A tensor to be written.
#[derive(Debug)]
pub struct Saved<'a> {
    /// Its key.
    pub name: &'static str,
    /// Its axes; none for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Data<'a>,
}

/// Elements to be written.
#[derive(Debug)]
pub enum Data<'a> {
    /// Floats.
    F32(Cow<'a, [f32]>),
    /// One integer.
    I32(i32),
}

impl Data<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::I32(n) => bytemuck::bytes_of(n),
        }
    }
}

/// Writes a dictionary of tensors as `torch.save` does; equal tensors are equal bytes.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write(path: &Path, tensors: &[Saved<'_>]) -> Result<(), SaeError> {
    let partial = atomic::partial_path(path);
    let mut zip = ZipWriter::new(BufWriter::new(fs_err::File::create(&partial)?));
    write_archive(&mut zip, tensors)
        .and_then(|()| Ok(zip.finish()?.flush()?))
        .map_err(std::io::Error::from)?;
    Ok(atomic::commit(&partial, path)?)
}

fn write_archive(
    zip: &mut ZipWriter<BufWriter<fs_err::File>>,
    tensors: &[Saved<'_>],
) -> ZipResult<()> {
    let mut add = |name: &str, bytes: &[u8]| -> ZipResult<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes.len() > u32::MAX as usize);
        zip.start_file(format!("archive/{name}"), options)?;
        Ok(zip.write_all(bytes)?)
    };
    add("data.pkl", &dictionary(tensors))?;
    add("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        add(&format!("data/{key}"), tensor.data.bytes())?;
    }
    add("version", b"3\n")
}

/// The pickle of `{name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())}`.
fn dictionary(tensors: &[Saved<'_>]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (key, Saved { name, shape, data }) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        let (kind, elements) = match data {
            Data::F32(data) => ("FloatStorage", data.len()),
            Data::I32(_) => ("IntStorage", 1),
        };
        out.extend(format!("ctorch\n{kind}\n").bytes());
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        integer(&mut out, elements);
        out.extend(b"tQK\x00(");
        shape.iter().for_each(|n| integer(&mut out, *n));
        out.extend(b"t(");
        row_major(shape).into_iter().for_each(|n| integer(&mut out, n));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integer(out: &mut Vec<u8>, n: usize) {
    out.extend([0x8a, 8]);
    out.extend((n as u64).to_le_bytes());
}
