//! What can go wrong with object storage. Messages never hold a credential.

use std::io;

use crate::{
    shard::ShardError,
    stage::{
        Classify, Kind,
        error::{io_hint, io_kind},
    },
};

/// Errors of reaching, writing and reading object storage.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A location that cannot be understood.
    #[error("`{text}` is no place for a store: {reason}")]
    Location {
        /// As given; without a password it may hold.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two locations were given where one is meant.
    #[error("STORE_DIR is `{store}`, but UPLOAD_TO is `{upload}`")]
    Two {
        /// STORE_DIR.
        store: String,
        /// UPLOAD_TO.
        upload: String,
    },
    /// The client cannot be made from the environment.
    #[error("cannot use `{url}`: {cause}")]
    Settings {
        /// The location.
        url: String,
        /// What the client says.
        cause: String,
    },
    /// The credentials are missing or not accepted.
    #[error("`{url}` refuses to {doing}: {cause}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// The object.
        url: String,
        /// What the server says.
        cause: String,
    },
    /// An object or its bucket is not there.
    #[error("cannot {doing} `{url}`: it does not exist")]
    Missing {
        /// What was tried.
        doing: &'static str,
        /// The object.
        url: String,
    },
    /// All retries failed.
    #[error("cannot {doing} `{url}`: {cause}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// The object.
        url: String,
        /// The last failure.
        cause: String,
    },
    /// The bytes in the store are not those of the manifest.
    #[error("`{url}` has {found}, expected {expected}")]
    Corrupt {
        /// The object.
        url: String,
        /// Length and digest in the manifest.
        expected: String,
        /// Length and digest of the object.
        found: String,
    },
    /// Another process has put the stream's manifest since.
    #[error("another process works on stream {worker} of this run")]
    Taken {
        /// The stream.
        worker: usize,
    },
    /// Local and remote shards of a stream contradict each other.
    #[error("shard {shard} of stream {worker} is not the one that `{url}` lists")]
    Differs {
        /// The stream.
        worker: usize,
        /// The shard.
        shard: usize,
        /// The remote manifest.
        url: String,
    },
    /// Reading or writing a local file failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A manifest cannot be read.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl Classify for RemoteError {
    fn kind(&self) -> Kind {
        match self {
            Self::Location { .. } | Self::Two { .. } | Self::Settings { .. } => Kind::Usage,
            Self::Refused { .. } | Self::Failed { .. } => Kind::Unavailable,
            Self::Missing { .. } | Self::Corrupt { .. } | Self::Differs { .. } => Kind::Input,
            Self::Taken { .. } => Kind::Stopped,
            Self::Io(e) => io_kind(e),
            Self::Shard(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io(e) => return io_hint(e),
            Self::Shard(e) => return e.hint(),
            Self::Location { .. } => {
                "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or a \
                 directory; credentials come from the environment"
            }
            Self::Two { .. } => "leave UPLOAD_TO unset: a remote STORE_DIR is where files go",
            Self::Settings { .. } => {
                "set AWS_REGION and AWS_ENDPOINT_URL, GOOGLE_SERVICE_ACCOUNT or AZURE_STORAGE_ACCOUNT_NAME as \
                 the provider's own tools expect them"
            }
            Self::Refused { .. } => {
                "check the credentials in the environment (AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY) and that \
                 they may read, write and list there"
            }
            Self::Missing { .. } => "check the bucket's name and RUN_ID",
            Self::Failed { .. } => {
                "local files are kept: run the same command again to go on; if it fails at once, \
                 check network, endpoint (an http:// one needs AWS_ALLOW_HTTP=true) and credentials"
            }
            Self::Corrupt { .. } => {
                "the object changed after it was uploaded: delete it and capture the run again \
                 under a new RUN_ID"
            }
            Self::Taken { .. } => "run the same command again to go on where the other one stopped",
            Self::Differs { .. } => {
                "two captures share this RUN_ID: give RUN_ID a new name, or remove one of them"
            }
        };
        Some(hint.to_owned())
    }
}

/// An error of the storage client as one line: of an XML answer only code and message, since
/// answers repeat what was signed, and nothing that the environment holds as a secret.
pub(super) fn cause(error: &object_store::Error) -> String {
    let text = error.to_string();
    let (said, body) = text.split_once('<').unwrap_or((&text, ""));
    let tag = |name: &str| {
        let (_, rest) = body.split_once(&format!("{name}>"))?;
        rest.split_once("</").map(|(value, _)| value.trim().to_owned())
    };
    let answer = [tag("Code"), tag("Message")].into_iter().flatten().collect::<Vec<_>>();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    redacted(format!("{said} {}", answer.join(": ")).trim().to_owned())
}

fn redacted(mut text: String) -> String {
    for (name, value) in std::env::vars() {
        let provider = ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|p| name.starts_with(p));
        let secret = ["KEY", "SECRET", "TOKEN", "PASSWORD"].iter().any(|s| name.contains(s));
        // Shorter values would blank out ordinary words.
        if provider && secret && value.len() >= 6 {
            text = text.replace(&value, "***");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_only_code_and_message_are_shown() {
        let body = "status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch\
                    </Code><Message>the signature is wrong</Message><AWSAccessKeyId>AKIA123</AWSAccessKeyId></Error>";
        let error = object_store::Error::Generic { store: "S3", source: body.into() };
        assert_eq!(
            cause(&error),
            "Generic S3 error: status code: 403 Forbidden: SignatureDoesNotMatch: the signature is wrong"
        );
    }
}
