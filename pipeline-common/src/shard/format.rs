//! Page-aligned safetensors files: the header, and reading one through a memory map.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::ShardError;

/// The header ends at a multiple of this, so that the payload is page-aligned.
pub const PAGE: usize = 4096;

/// Name, type and shape of one tensor; payloads follow each other in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorSpec<'_> {
    /// The payload's length in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Metadata in a fixed order: equal shards are equal bytes.
pub type Metadata = Vec<(String, String)>;

/// Header bytes for `tensors`, padded with blanks to whole pages and at least `reserved` bytes.
pub fn header(tensors: &[TensorSpec<'_>], metadata: &Metadata, reserved: usize) -> Vec<u8> {
    let mut root = Map::new();
    let pairs: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    root.insert("__metadata__".into(), Value::Object(pairs));
    let mut offset = 0;
    for t in tensors {
        let end = offset + t.bytes();
        let info = json!({"dtype": format!("{:?}", t.dtype), "shape": t.shape, "data_offsets": [offset, end]});
        root.insert(t.name.into(), info);
        offset = end;
    }
    let text = Value::Object(root).to_string();
    let total = (text.len() + 8).max(reserved).next_multiple_of(PAGE);
    let mut bytes = ((total - 8) as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(total, b' ');
    bytes
}

/// Writes a whole file under its `.partial` name and commits it.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn write_file(
    path: &Path,
    tensors: &[(TensorSpec<'_>, &[u8])],
    metadata: &Metadata,
) -> io::Result<()> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let partial = crate::stage::atomic::partial_path(path);
    let mut file = io::BufWriter::new(fs_err::File::create(&partial)?);
    file.write_all(&header(&specs, metadata, 0))?;
    for (_, bytes) in tensors {
        file.write_all(bytes)?;
    }
    file.flush()?;
    crate::stage::atomic::commit(&partial, path)
}

/// Maps a file read-only.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn map(path: &Path) -> io::Result<Mmap> {
    let file: File = fs_err::File::open(path)?.into_parts().0;
    #[expect(unsafe_code, reason = "memory maps are the point of the shard format")]
    // SAFETY: committed shards are never modified in place; a file truncated by somebody else
    // while mapped raises SIGBUS, which no reader of memory maps can prevent.
    unsafe {
        Mmap::map(&file)
    }
}

/// Parses and validates a mapped file: the header must cover the bytes exactly.
///
/// # Errors
/// [`ShardError::Format`] naming the path.
pub fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ShardError> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| ShardError::Format { path: path.to_owned(), reason: e.to_string() })
}

/// blake3 of a file as it stands (`b3sum` prints the same), and its length.
///
/// # Errors
/// Any I/O error, naming the path.
pub fn digest(path: &Path) -> io::Result<(String, u64)> {
    let map = map(path)?;
    Ok((digest_bytes(&map), map.len() as u64))
}

/// blake3 of bytes at hand, in hexadecimal.
pub fn digest_bytes(bytes: &[u8]) -> String {
    blake3::Hasher::new().update_rayon(bytes).finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &'static str, dtype: Dtype, shape: &[usize]) -> TensorSpec<'static> {
        TensorSpec { name, dtype, shape: shape.to_vec() }
    }

    #[test]
    fn the_payload_is_page_aligned_and_any_reader_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let a: Vec<u8> = (0..12).collect();
        let b: Vec<u8> = (0..16).collect();
        let tensors =
            [(spec("a", Dtype::F16, &[3, 2]), &a[..]), (spec("b", Dtype::F64, &[2]), &b[..])];
        write_file(&path, &tensors, &vec![("model".into(), "m".into())]).unwrap();
        let bytes = fs_err::read(&path).unwrap();
        assert_eq!(bytes.len(), PAGE + 28);
        let opened = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(opened.tensor("a").unwrap().data(), &a);
        assert_eq!(opened.tensor("b").unwrap().shape(), [2]);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["model"], "m");
    }

    #[test]
    fn a_shorter_or_longer_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write_file(&path, &[(spec("a", Dtype::F32, &[2]), &[0; 8])], &vec![]).unwrap();
        let whole = fs_err::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], &[&whole[..], &[0]].concat()[..]] {
            assert!(matches!(parse(&path, bytes), Err(ShardError::Format { .. })));
        }
    }

    #[test]
    fn a_long_header_takes_more_pages() {
        let long = vec![("k".to_owned(), "v".repeat(5000))];
        assert_eq!(header(&[], &long, 0).len(), 2 * PAGE);
    }
}
