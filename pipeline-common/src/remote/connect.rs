//! Clients of the providers, from the environment as the providers' own tools read it.

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, Result, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
};

use super::{Location, location::Place};

/// Limits of a request. Bodies have at most [`super::transfer::PART`] bytes, so this is a rate of 140 KB/s.
const TIMEOUTS: [(ClientConfigKey, &str, &str); 2] = [
    (ClientConfigKey::Timeout, "TIMEOUT", "120 seconds"),
    (ClientConfigKey::ConnectTimeout, "CONNECT_TIMEOUT", "10 seconds"),
];

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(15),
            base: 2.0,
        },
        max_retries: 5,
        retry_timeout: Duration::from_secs(180),
    }
}

/// The limits that the environment does not set: names begin with `provider`.
fn limits(provider: &str) -> impl Iterator<Item = (ClientConfigKey, &'static str)> {
    let unset = move |name: &str| std::env::var_os(format!("{provider}_{name}")).is_none();
    TIMEOUTS.into_iter().filter(move |limit| unset(limit.1)).map(|limit| (limit.0, limit.2))
}

/// Makes the client of a place; a directory is made.
///
/// # Errors
/// Settings that are missing or contradict each other; I/O errors of the directory.
pub(super) fn open(location: &Location) -> std::io::Result<Result<Arc<dyn ObjectStore>>> {
    Ok(match &location.place {
        Place::S3 => s3(&location.bucket),
        Place::Gs => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&location.bucket)
                .with_retry(retry());
            let limited = limits("GOOGLE").fold(builder, |b, (key, value)| {
                b.with_config(GoogleConfigKey::Client(key), value)
            });
            limited.build().map(|store| Arc::new(store) as _)
        }
        Place::Az => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&location.bucket)
                .with_retry(retry());
            let limited = limits("AZURE")
                .fold(builder, |b, (key, value)| b.with_config(AzureConfigKey::Client(key), value));
            limited.build().map(|store| Arc::new(store) as _)
        }
        Place::Directory(root) => {
            fs_err::create_dir_all(root)?;
            LocalFileSystem::new_with_prefix(root)
                .map(|store| Arc::new(store.with_fsync(true)) as _)
        }
    })
}

fn s3(bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry());
    let mut builder = limits("AWS")
        .fold(builder, |b, (key, value)| b.with_config(AmazonS3ConfigKey::Client(key), value));
    // Servers that know no content checksums can be told so.
    if std::env::var_os("AWS_CHECKSUM_ALGORITHM").is_none() {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    builder.build().map(|store| Arc::new(store) as _)
}
