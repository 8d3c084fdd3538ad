//! What can be wrong with an SAE's files and its training.

use std::{io, path::PathBuf};

use crate::{
    stage::{
        Classify, Kind,
        error::{io_hint, io_kind},
    },
    torch::TorchError,
};

/// Errors of loading, saving and training.
#[derive(Debug, thiserror::Error)]
pub enum SaeError {
    /// Reading or writing failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is not what its name says.
    #[error("`{path}`: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint's bytes differ from those that were committed.
    #[error("checkpoint `{path}` is corrupt: blake3 is {found}, expected {expected}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Digest in `latest.json`.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("`{path}`: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// From the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A file's field has a value that is not supported, or is missing.
    #[error("`{path}`: {field} is {found}, expected {expected}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, tensor or setting.
        field: String,
        /// What it is.
        found: String,
        /// What it has to be.
        expected: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// A format has no place for something that changes what an SAE computes.
    #[error("{target} cannot hold {what}")]
    Inexpressible {
        /// The format.
        target: &'static str,
        /// What it cannot hold.
        what: String,
    },
    /// The loss or a gradient became infinite or not a number.
    #[error("training diverged at step {step}: {quantity} is {value}")]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// What is not finite.
        quantity: String,
        /// Its value.
        value: f64,
    },
}

impl From<TorchError> for SaeError {
    fn from(error: TorchError) -> Self {
        match error {
            TorchError::Format { path, reason } => Self::Format { path, reason },
            TorchError::Legacy { path } => Self::Field {
                path,
                field: "the file's format".into(),
                found: "PyTorch's before 1.6".into(),
                expected: "a zip archive".into(),
                hint: "load it with torch and save it again with torch.save",
            },
        }
    }
}

impl Classify for SaeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io(e) => io_kind(e),
            Self::Format { .. }
            | Self::Checkpoint { .. }
            | Self::Shape { .. }
            | Self::Field { .. }
            | Self::Inexpressible { .. } => Kind::Input,
            Self::Diverged { .. } => Kind::Unexpected,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Io(e) => io_hint(e),
            Self::Checkpoint { .. } => Some(
                "remove the run's checkpoints/ to train it from the start, or restore the file"
                    .into(),
            ),
            Self::Diverged { .. } => Some(
                "lower LR, lengthen WARMUP or lower CLIP, and give SAE_RUN_ID a new name; \
                 training.html shows the curves up to there"
                    .into(),
            ),
            Self::Field { hint, .. } => Some((*hint).into()),
            Self::Inexpressible { .. } => {
                Some("SAE_FORMAT=saelens holds the most; see convert_sae --help".into())
            }
            _ => None,
        }
    }
}
