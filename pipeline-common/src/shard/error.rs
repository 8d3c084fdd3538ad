//! What can be wrong with shards.

use std::{io, path::PathBuf};

use crate::stage::{
    Classify, Kind,
    error::{io_hint, io_kind},
};

/// Errors of writing and reading shards and manifests.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Reading or writing failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not the safetensors file it should be.
    #[error("shard `{path}` is not a valid safetensors file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the format check found, with offsets.
        reason: String,
    },
    /// The bytes differ from those that were committed.
    #[error(
        "shard `{path}` is corrupt: blake3 is {found}, the manifest says {expected} ({bytes} bytes)"
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// The file's length.
        bytes: u64,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// A property of the file differs from the manifest.
    #[error("shard `{path}`: {field} is {found}, expected {expected}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which property.
        field: &'static str,
        /// From the manifest.
        expected: String,
        /// From the file.
        found: String,
    },
    /// A manifest line that is not the torn last one cannot be read.
    #[error("manifest `{path}` line {line} (byte {offset}): {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Where the line begins.
        offset: usize,
        /// What is wrong.
        reason: String,
    },
    /// A value does not fit f16.
    #[error("hook `{hook}`, row {row}: {value} does not fit f16 (largest 65504)")]
    Overflow {
        /// The hook.
        hook: String,
        /// Row of the shard, from 0.
        row: u64,
        /// The first value that does not fit.
        value: f32,
    },
    /// A value is NaN.
    #[error("hook `{hook}`, row {row}: the activation is not a number")]
    NotANumber {
        /// The hook.
        hook: String,
        /// Row of the shard, from 0.
        row: u64,
    },
}

impl Classify for ShardError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io(e) => io_kind(e),
            _ => Kind::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io(e) => return io_hint(e),
            Self::Overflow { .. } => {
                "set ACTIVATION_SCALE (0.1, for instance), and RUN_ID to a new name if it is set: \
                 activations are multiplied by it before they are stored"
            }
            Self::NotANumber { .. } => {
                "check the checkpoint; capture in f32 (DTYPE=f32) if this was bf16"
            }
            Self::Digest { .. } | Self::Format { .. } | Self::Mismatch { .. } => {
                "the file changed after it was written: capture the run again under a new RUN_ID"
            }
            Self::Manifest { .. } => {
                "restore the manifest, or capture the run again under a new RUN_ID"
            }
        };
        Some(hint.to_owned())
    }
}
