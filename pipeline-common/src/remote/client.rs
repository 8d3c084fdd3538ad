//! A blocking view of a store: small objects, conditional puts, lists.
//!
//! Each request is retried within the client (5xx, refused and dropped connections, with
//! exponential back-off and jitter); an operation that still fails is tried again as a whole, with
//! a new signature. Files go through [`super::transfer`].

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use object_store::{
    Attribute, Attributes, Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    UpdateVersion, path::Path as Key,
};
use tokio::runtime::{Builder, Runtime};

use super::{Location, RemoteError, connect, error::cause, location::Place};
use crate::stage::lock::Lock;

/// Whole operations tried, each with the requests of [`connect`].
const ATTEMPTS: u32 = 3;

/// Pause before an operation is tried again; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);

/// Object metadata with a file's digest.
pub(super) const BLAKE3: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("blake3"));

/// Object metadata with the process that put it.
const WRITER: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("writer"));

type Result<T> = std::result::Result<T, RemoteError>;

/// A store, reached.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
    location: Location,
    /// Tells this process's puts from those of others.
    writer: String,
    warned: Arc<AtomicBool>,
}

/// One version of an object; a conditional put replaces no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(UpdateVersion);

/// A small object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its contents.
    pub bytes: Vec<u8>,
    /// Which version they are.
    pub version: Version,
    writer: Option<String>,
}

/// What is in a directory of a store.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Names of the objects.
    pub objects: Vec<String>,
    /// Names of the directories.
    pub directories: Vec<String>,
}

/// What a store knows of an object without reading it.
#[derive(Clone, Debug)]
pub struct Head {
    /// Length.
    pub bytes: u64,
    /// Digest that the uploader wrote beside it, where the store has metadata.
    pub blake3: Option<String>,
    version: Version,
}

impl Head {
    /// What tells this version of the object from others.
    pub(super) fn e_tag(&self) -> Option<String> {
        self.version.0.e_tag.clone()
    }
}

impl Client {
    /// Makes a client from the environment; sends nothing yet.
    ///
    /// # Errors
    /// [`RemoteError::Settings`] where the environment does not suffice; I/O errors.
    pub fn new(location: Location) -> Result<Self> {
        let settings =
            |e: Error| RemoteError::Settings { url: location.to_string(), cause: cause(&e) };
        let store = connect::open(&location)?.map_err(settings)?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let random = RandomState::new();
        Ok(Self {
            store,
            runtime: Arc::new(runtime),
            location,
            writer: format!("{:016x}", random.hash_one(std::process::id())),
            warned: Arc::default(),
        })
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// An object's full name, for messages.
    pub fn url(&self, key: &str) -> String {
        self.location.url(key)
    }

    /// Whether the server compares each body with the SHA-256 sent along.
    pub(super) fn server_verifies(&self) -> bool {
        self.location.place == Place::S3
    }

    /// Metadata, where the store has any.
    pub(super) fn attributes(&self, name: Attribute, value: &str) -> Attributes {
        let mut attributes = Attributes::new();
        if !matches!(self.location.place, Place::Directory(_)) {
            attributes.insert(name, value.to_owned().into());
        }
        attributes
    }

    pub(super) fn key(&self, key: &str) -> Key {
        Key::from(format!("{}/{key}", self.location.prefix))
    }

    /// Runs an operation, again where it may help.
    pub(super) fn call<T, F>(
        &self,
        doing: &'static str,
        key: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut tried = 1;
        loop {
            match self.runtime.block_on(attempt()) {
                Ok(value) => return Ok(value),
                Err(e) if tried < ATTEMPTS && is_transient(&e) => {
                    tracing::warn!(
                        "cannot {doing} `{}`, trying again: {}",
                        self.url(key),
                        cause(&e)
                    );
                    std::thread::sleep(jittered(PAUSE * 2_u32.pow(tried - 1)));
                    tried += 1;
                }
                Err(e) => return Err(self.error(doing, key, &e)),
            }
        }
    }

    fn error(&self, doing: &'static str, key: &str, error: &Error) -> RemoteError {
        let (url, cause) = (self.url(key), cause(error));
        match error {
            Error::NotFound { .. } => RemoteError::Missing { doing, url },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                RemoteError::Refused { doing, url, cause }
            }
            _ => RemoteError::Failed { doing, url, cause },
        }
    }

    /// Reads a small object; `None` where there is none.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn get(&self, key: &str) -> Result<Option<Object>> {
        let path = self.key(key);
        self.call("read", key, || async {
            let found = match self.store.get_opts(&path, GetOptions::new()).await {
                Err(Error::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            let version = Version(UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            });
            let writer = found.attributes.get(&WRITER).map(|v| v.as_ref().to_owned());
            Ok(Some(Object { bytes: found.bytes().await?.to_vec(), version, writer }))
        })
    }

    /// What is known of an object; `None` where there is none.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn head(&self, key: &str) -> Result<Option<Head>> {
        let path = self.key(key);
        self.call("look at", key, || async {
            match self.store.get_opts(&path, GetOptions::new().with_head(true)).await {
                Err(Error::NotFound { .. }) => Ok(None),
                other => {
                    let found = other?;
                    let blake3 = found.attributes.get(&BLAKE3).map(|v| v.as_ref().to_owned());
                    let (e_tag, version) = (found.meta.e_tag, found.meta.version);
                    let version = Version(UpdateVersion { e_tag, version });
                    Ok(Some(Head { bytes: found.meta.size, blake3, version }))
                }
            }
        })
    }

    /// Puts a small object over whatever is there.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<Version> {
        self.put_mode(key, bytes, &PutMode::Overwrite)
    }

    /// Puts a small object over the version `seen`, or where none was seen; `None` if another
    /// process was there first.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn put_over(
        &self,
        key: &str,
        bytes: &[u8],
        seen: Option<&Version>,
    ) -> Result<Option<Version>> {
        if let Place::Directory(root) = &self.location.place {
            let _lock = Lock::wait(&root.join(".lock")).map_err(|e| RemoteError::Failed {
                doing: "lock",
                url: self.url(""),
                cause: e.source.to_string(),
            })?;
            return self.compare_and_put(key, bytes, seen);
        }
        let mode = match seen {
            None => PutMode::Create,
            Some(version) => PutMode::Update(version.0.clone()),
        };
        let path = self.key(key);
        let put = self.call("write", key, || async {
            match self
                .store
                .put_opts(&path, bytes.to_vec().into(), self.options(mode.clone()))
                .await
            {
                Ok(put) => Ok(Conditional::Put(Version(put.into()))),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    Ok(Conditional::Late)
                }
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                    Ok(Conditional::Unknown)
                }
                Err(e) => Err(e),
            }
        })?;
        match put {
            Conditional::Put(version) => Ok(Some(version)),
            // The answer to a put that arrived may have been lost, and the put repeated.
            Conditional::Late => Ok(self
                .get(key)?
                .filter(|there| there.bytes == bytes && there.writer.as_ref() == Some(&self.writer))
                .map(|there| there.version)),
            Conditional::Unknown => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "`{}` has no conditional puts: two processes on one stream are noticed late",
                        self.location
                    );
                }
                self.compare_and_put(key, bytes, seen)
            }
        }
    }

    fn compare_and_put(
        &self,
        key: &str,
        bytes: &[u8],
        seen: Option<&Version>,
    ) -> Result<Option<Version>> {
        if self.head(key)?.map(|head| head.version).as_ref() != seen {
            return Ok(None);
        }
        self.put(key, bytes).map(Some)
    }

    fn put_mode(&self, key: &str, bytes: &[u8], mode: &PutMode) -> Result<Version> {
        let path = self.key(key);
        let put = self.call("write", key, || {
            self.store.put_opts(&path, bytes.to_vec().into(), self.options(mode.clone()))
        })?;
        Ok(Version(put.into()))
    }

    fn options(&self, mode: PutMode) -> PutOptions {
        PutOptions {
            mode,
            attributes: self.attributes(WRITER, &self.writer),
            ..PutOptions::default()
        }
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn delete(&self, key: &str) -> Result<()> {
        let path = self.key(key);
        self.call("remove", key, || async {
            match self.store.delete(&path).await {
                Err(Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        })
    }

    /// The names directly in a directory.
    ///
    /// # Errors
    /// [`RemoteError`] naming the directory.
    pub fn list(&self, directory: &str) -> Result<Listing> {
        let path = self.key(directory);
        let list = self.call("list", directory, || self.store.list_with_delimiter(Some(&path)))?;
        let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
        Ok(Listing {
            objects: list.objects.iter().map(|object| name(&object.location)).collect(),
            directories: list.common_prefixes.iter().map(name).collect(),
        })
    }

    /// Writes, reads and removes an object: what a run will need.
    ///
    /// # Errors
    /// [`RemoteError`] naming the object.
    pub fn probe(&self) -> Result<()> {
        let key = format!("probe-{}", self.writer);
        self.put(&key, b"probe")?;
        self.get(&key)?;
        self.delete(&key)
    }
}

/// What came of a conditional put.
enum Conditional {
    Put(Version),
    Late,
    Unknown,
}

/// Whether trying again may help. The client's own type for an answer's status is private.
fn is_transient(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. })
        && !error.to_string().contains("status code: 4")
}

/// From half to all of a pause, so that a cluster's workers do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1000;
    pause.mul_f64(0.5 + random as f64 / 2000.0)
}
