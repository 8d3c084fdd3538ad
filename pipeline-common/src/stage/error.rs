//! Error kinds, hints and exit codes.
//!
//! Modules define `thiserror` enums and implement [`Classify`] for them; `?` in a stage turns any
//! of them into a [`Failure`], which [`super::main()`] prints once.

use std::io;

use crate::slurm::SlurmError;

/// What an error means to the caller; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A defect of this program.
    Unexpected,
    /// A wrong flag, variable, YAML key, or a path given by the user that does not exist.
    Usage,
    /// Input that is invalid or corrupt; the message names the file.
    Input,
    /// Something needed is missing: GPU, hub, disk space, a writable store.
    Unavailable,
    /// Stopped on request, progress saved: the script requeues.
    Stopped,
}

impl Kind {
    /// The process exit code, as the sbatch scripts read it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Input => 65,
            Self::Unavailable => 69,
            Self::Stopped => 75,
        }
    }
}

/// An error that knows its [`Kind`] and, where there is something to do, a hint.
pub trait Classify: std::error::Error {
    /// The kind, which decides the exit code.
    fn kind(&self) -> Kind;
    /// One sentence on what to do about it.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// The kind of an I/O error met while reading or writing the user's files.
pub fn io_kind(error: &io::Error) -> Kind {
    use io::ErrorKind as E;
    match error.kind() {
        E::StorageFull
        | E::QuotaExceeded
        | E::PermissionDenied
        | E::ReadOnlyFilesystem
        | E::OutOfMemory
        | E::NotADirectory
        | E::AlreadyExists
        | E::FileTooLarge => Kind::Unavailable,
        E::UnexpectedEof | E::InvalidData | E::NotFound | E::IsADirectory => Kind::Input,
        _ => Kind::Unexpected,
    }
}

/// The hint that goes with an I/O error.
pub fn io_hint(error: &io::Error) -> Option<String> {
    use io::ErrorKind as E;
    let hint = match error.kind() {
        E::StorageFull | E::QuotaExceeded => {
            "free space or point STORE_DIR elsewhere, then run the same command again: \
             what was committed is kept"
        }
        E::PermissionDenied | E::ReadOnlyFilesystem | E::NotADirectory => {
            "point STORE_DIR at a directory you can write to"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

impl Classify for io::Error {
    fn kind(&self) -> Kind {
        io_kind(self)
    }
    fn hint(&self) -> Option<String> {
        io_hint(self)
    }
}

impl Classify for SlurmError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotANumber { .. } => "SLURM sets it; unset it outside a job",
            Self::OutsideShare { .. } => {
                "WORKER counts from 0 and must be below WORKERS; --array=0-3 has 4 workers"
            }
            Self::ArrayWithGaps => {
                "submit with --array=0-N, or set WORKERS to the number of streams of the run"
            }
        };
        Some(hint.to_owned())
    }
}

/// What a stage returns when it does not finish: the error chain, its kind and its hint.
#[derive(Debug)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: Kind,
    /// What the user can do.
    pub hint: Option<String>,
    /// The chain, printed once, one cause per line.
    pub source: anyhow::Error,
}

/// The result of a stage and of functions that mix errors of several modules.
pub type Result<T> = std::result::Result<T, Failure>;

impl<E: Classify + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { kind: error.kind(), hint: error.hint(), source: anyhow::Error::new(error) }
    }
}

impl Failure {
    /// A wrong flag, variable or path.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Invalid or corrupt input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// Something needed is not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// Stopped on request with everything committed.
    pub fn stopped(message: impl Into<String>) -> Self {
        Self::new(Kind::Stopped, message)
            .hint("run the same command again to go on where it stopped")
    }

    /// Adds or replaces the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front of the chain.
    #[must_use]
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.source = self.source.context(doing.into());
        self
    }

    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, hint: None, source: anyhow::Error::msg(message.into()) }
    }
}
