//! Whole files to and from a store, verified by length and blake3.
//!
//! Large files go up in parts and come down in ranges, so that memory is bounded and a lost
//! connection costs one of them.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use object_store::{
    Error, GetOptions, ObjectStore, PutMultipartOptions, PutOptions, WriteMultipart,
};

use super::{
    Client, RemoteError,
    client::{BLAKE3, Head},
};
use crate::{shard::ShardFile, stage::atomic};

/// Bytes of a request's body.
pub const PART: usize = 16 << 20;

/// Parts of a file on their way at a time: with [`PART`] the memory an upload takes.
const PARTS: usize = 4;

/// Uploads of a file whose object then differs.
const UPLOADS: usize = 2;

type Result<T> = std::result::Result<T, RemoteError>;

impl Client {
    /// Uploads a file and verifies what arrived; an object that is there already stays.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object; I/O errors naming the file.
    pub fn upload(&self, file: &Path, key: &str, expected: &ShardFile) -> Result<()> {
        if self.holds(key, expected)? {
            return Ok(());
        }
        fs_err::metadata(file)?;
        for _ in 0..UPLOADS {
            self.call("write", key, || self.send(file, key, expected))?;
            if self.holds(key, expected)? {
                return Ok(());
            }
            tracing::warn!("`{}` is not what was sent, sending it again", self.url(key));
        }
        Err(RemoteError::Corrupt {
            url: self.url(key),
            expected: described(expected.bytes, &expected.blake3),
            found: "something else, twice".into(),
        })
    }

    /// Whether the object is the expected file. Where the server has compared the body's digest,
    /// the digest in the metadata says which file it was; elsewhere the object is read back.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn holds(&self, key: &str, expected: &ShardFile) -> Result<bool> {
        let Some(head) = self.head(key)?.filter(|head| head.bytes == expected.bytes) else {
            return Ok(false);
        };
        match &head.blake3 {
            Some(digest) if self.server_verifies() => Ok(*digest == expected.blake3),
            _ => Ok(self.read(key, &head, &mut io::sink())? == expected.blake3),
        }
    }

    async fn send(&self, file: &Path, key: &str, expected: &ShardFile) -> object_store::Result<()> {
        let key = self.key(key);
        let attributes = self.attributes(BLAKE3, &expected.blake3);
        let mut file = std::fs::File::open(file).map_err(local)?;
        if expected.bytes <= PART as u64 {
            let mut bytes = vec![];
            file.read_to_end(&mut bytes).map_err(local)?;
            let options = PutOptions { attributes, ..PutOptions::default() };
            return self.store.put_opts(&key, bytes.into(), options).await.map(drop);
        }
        let options = PutMultipartOptions::from(attributes);
        let parts = self.store.put_multipart_opts(&key, options).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(parts, PART);
        match feed(&mut writer, &mut file).await {
            Ok(()) => writer.finish().await.map(drop),
            Err(e) => {
                // Parts of an upload that nobody ends are stored, and paid for.
                let _first_error_counts = writer.abort().await;
                Err(e)
            }
        }
    }

    /// Downloads an object to `file`, which appears whole. Compared with `expected`, or with the
    /// digest in the object's metadata.
    ///
    /// # Errors
    /// [`RemoteError::Missing`], [`RemoteError::Corrupt`]; I/O errors naming the file.
    pub fn download(&self, key: &str, file: &Path, expected: Option<&ShardFile>) -> Result<()> {
        let missing = || RemoteError::Missing { doing: "read", url: self.url(key) };
        let head = self.head(key)?.ok_or_else(missing)?;
        if let Some(parent) = file.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let partial = atomic::partial_path(file);
        let mut out = fs_err::File::create(&partial)?;
        let found = self.read(key, &head, &mut out)?;
        let wanted = expected
            .map(|e| (e.bytes, e.blake3.clone()))
            .or_else(|| head.blake3.clone().map(|digest| (head.bytes, digest)));
        if let Some((bytes, digest)) = wanted.filter(|w| (w.0, &w.1) != (head.bytes, &found)) {
            fs_err::remove_file(&partial)?;
            return Err(RemoteError::Corrupt {
                url: self.url(key),
                expected: described(bytes, &digest),
                found: described(head.bytes, &found),
            });
        }
        Ok(atomic::commit(&partial, file)?)
    }

    /// Reads an object range by range, all of one version; its blake3.
    fn read(&self, key: &str, head: &Head, out: &mut dyn Write) -> Result<String> {
        let path = self.key(key);
        let mut hasher = blake3::Hasher::new();
        for begin in (0..head.bytes).step_by(PART) {
            let range = begin..(begin + PART as u64).min(head.bytes);
            let options = GetOptions::new().with_range(Some(range)).with_if_match(head.e_tag());
            let bytes = self.call("read", key, || async {
                self.store.get_opts(&path, options.clone()).await?.bytes().await
            })?;
            hasher.update_rayon(&bytes);
            out.write_all(&bytes)?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

async fn feed(writer: &mut WriteMultipart, file: &mut std::fs::File) -> object_store::Result<()> {
    let mut buffer = vec![0; PART];
    loop {
        let n = file.read(&mut buffer).map_err(local)?;
        if n == 0 {
            return Ok(());
        }
        writer.wait_for_capacity(PARTS).await?;
        writer.write(&buffer[..n]);
    }
}

/// A local failure within a remote operation.
fn local(error: io::Error) -> Error {
    Error::Generic { store: "local file", source: Box::new(error) }
}

fn described(bytes: u64, blake3: &str) -> String {
    format!("{bytes} bytes with blake3 {blake3}")
}
