//! `.pt` files of PyTorch 1.6 and later: a zip archive of a pickle and of one file for each storage.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
};

use zip::{CompressionMethod, ZipWriter, result::ZipResult, write::SimpleFileOptions};

use super::{
    archive::Archive,
    pickle::{self, Item, Stored},
    tensors::{Bytes, Tensors, View, row_major},
};
use crate::{sae::SaeError, stage::atomic};

/// How a file begins that PyTorch before 1.6 saved: a pickle of its magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";
/// Where torch lets storages begin, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Opens a file that holds a dictionary of tensors.
///
/// # Errors
/// I/O errors; what is no such file; a pickle that asks for anything else.
pub fn open(path: &Path) -> Result<Tensors, SaeError> {
    Tensors::open(path, |bytes| {
        if bytes.starts_with(LEGACY) {
            return Err(SaeError::Field {
                path: path.to_owned(),
                field: "the file's format".into(),
                found: "PyTorch's before 1.6".into(),
                expected: "a zip archive".into(),
                hint: "load it with torch and save it again with torch.save",
            });
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
                    let view = view(&archive, root, stored)?;
                    views.insert(name, view);
                }
                Item::Value(value) => {
                    scalars.insert(name, value);
                }
            }
        }
        Ok((views, scalars))
    })
}

fn view(archive: &Archive<'_>, root: &str, stored: Stored) -> Result<View, SaeError> {
    let Stored { key, dtype, offset, shape, strides } = stored;
    let file = format!("{root}/data/{key}");
    let Bytes::Mapped(range) = archive.read(&file)? else {
        return Err(archive.bad(format!("`{file}` is compressed, which torch never does")));
    };
    let begin = offset.checked_mul(dtype.bitsize() / 8);
    let begin = begin.filter(|begin| *begin <= range.len());
    let Some(begin) = begin else {
        return Err(archive.bad(format!("a tensor begins behind the end of `{file}`")));
    };
    let bytes = Bytes::Mapped(range.start + begin..range.end);
    Ok(View { dtype, shape, strides, bytes })
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
