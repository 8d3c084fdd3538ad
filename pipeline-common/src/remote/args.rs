//! The settings of object storage.

use clap::{Args, ValueEnum, builder::BoolishValueParser};

use super::{Client, Location, Reader, RemoteError};
use crate::stage::{CommonArgs, store::Store};

/// Where finished files go, besides the store.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Object storage")]
pub struct RemoteArgs {
    /// Where finished files go too: s3://BUCKET/PREFIX, gs://, az:// or a directory
    /// [default: STORE_DIR where that is a URL]
    #[arg(long, env, value_name = "URL")]
    pub upload_to: Option<String>,
}

impl RemoteArgs {
    /// The store to upload to; `None` where only the local one is used.
    ///
    /// # Errors
    /// A location that cannot be understood, or two of them.
    pub fn connect(&self, common: &CommonArgs) -> Result<Option<Client>, RemoteError> {
        let text = match (self.upload_to.as_deref(), common.store_url()) {
            (Some(upload), Some(store)) if upload != store => {
                return Err(RemoteError::Two { store: store.into(), upload: upload.into() });
            }
            (Some(text), _) | (None, Some(text)) => text,
            (None, None) => return Ok(None),
        };
        Client::new(Location::parse(text)?).map(Some)
    }
}

/// Settings of a stage that writes shards.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Object storage")]
pub struct UploadArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// Keep local activation files that are uploaded [default: unless STORE_DIR is a URL]
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    upload_keep: Option<bool>,
}

impl UploadArgs {
    /// The store to upload to, if there is one.
    ///
    /// # Errors
    /// As [`RemoteArgs::connect`].
    pub fn connect(&self, common: &CommonArgs) -> Result<Option<Client>, RemoteError> {
        self.remote.connect(common)
    }

    /// Whether local files stay.
    pub fn keep(&self, common: &CommonArgs) -> bool {
        self.upload_keep.unwrap_or(common.store_url().is_none())
    }
}

/// When shards are copied to the node's own disk before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Staging {
    /// Those that are not in the local store.
    Auto,
    /// All: for shared file systems that are slow to read again and again.
    Always,
    /// None.
    Never,
}

/// Settings of a stage that reads shards.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Object storage")]
pub struct ReaderArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// Which shards are copied to $SLURM_TMPDIR (else the temporary directory) before they are read
    #[arg(long, env, value_enum, default_value_t = Staging::Auto)]
    staging: Staging,
}

impl ReaderArgs {
    /// What finds runs, wherever they are.
    ///
    /// # Errors
    /// As [`RemoteArgs::connect`].
    pub fn reader(&self, common: &CommonArgs) -> Result<Reader, RemoteError> {
        let client = self.remote.connect(common)?;
        let store = Store::new(common.store_root());
        Ok(Reader::new(store, client, self.staging, common.store_url().is_some()))
    }
}
