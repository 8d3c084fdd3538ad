//! Object storage: a run's files in S3, Google Cloud Storage, Azure, or a second directory.
//!
//! Objects have the names of the store: `<url>/runs/<run_id>/<path within the run>`. A stream's
//! shards count once `workers/<i>.jsonl` lists them; that object is put whole, last, and only over
//! the version its writer has seen, so of two writers of one stream one loses.
//!
//! [`location`] says where, [`client`] speaks to it, [`stream`] keeps one stream's objects,
//! [`upload`] does so in the background, [`run`] is what all streams share, [`staging`] brings
//! shards back, [`mirror`] keeps a training's directory. Which shards there are is none of its
//! business: that is the manifest's.

pub mod args;
pub mod client;
mod connect;
pub mod error;
pub mod location;
pub mod mirror;
pub mod run;
pub mod staging;
pub mod stream;
pub mod transfer;
pub mod upload;

pub use args::{ReaderArgs, UploadArgs};
pub use client::Client;
pub use error::RemoteError;
pub use location::Location;
pub use run::RemoteRun;
pub use staging::Reader;
pub use stream::Stream;
pub use upload::Uploader;
