//! What can be wrong with a checkpoint, a hook or a batch.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::stage::{Classify, Kind};

/// Why a model could not be described, loaded or run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The checkpoint's directory lacks a file.
    #[error("no {what} in `{}`", dir.display())]
    Missing {
        /// The file's name, or names.
        what: &'static str,
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// A file of the checkpoint cannot be read or is not what it claims to be.
    #[error("`{}`: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file of the checkpoint is of a format that PyTorch has left.
    #[error("{message}")]
    Legacy {
        /// The file, and what it is.
        message: String,
    },
    /// `config.json` names a family that is not implemented.
    #[error(
        "`{}`: model_type `{found}` is not supported (supported: {supported}); nearest is `{nearest}`",
        path.display()
    )]
    UnknownFamily {
        /// The file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
        /// Families there are.
        supported: String,
        /// The family whose name is most alike.
        nearest: &'static str,
    },
    /// `config.json` asks for arithmetic that is not implemented.
    #[error("`{}`: `{field}` is {found}; supported: {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// Its value.
        found: String,
        /// Values that are understood.
        expected: String,
    },
    /// The index assigns a tensor to a file that does not exist.
    #[error("`{}` places `{tensor}` in `{shard}`, which does not exist", index.display())]
    MissingShard {
        /// `model.safetensors.index.json`.
        index: PathBuf,
        /// A tensor of the missing file.
        tensor: String,
        /// The missing file.
        shard: String,
    },
    /// A tensor the model needs is in none of the checkpoint's files.
    #[error("no tensor `{tensor}` in `{}`", path.display())]
    MissingTensor {
        /// The weights' file, or the index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than `config.json` implies.
    #[error("`{}`: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that `config.json` implies.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a number format that weights are not read from.
    #[error("`{}`: tensor `{tensor}` is stored as {found}, expected F32, F16 or BF16", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its number format.
        found: String,
    },
    /// No hook has that name.
    #[error("`{name}` is not a hook of {architecture}")]
    UnknownHook {
        /// As the user wrote it.
        name: String,
        /// The model's class.
        architecture: String,
        /// Names that exist.
        known: String,
    },
    /// The family computes no such tensor.
    #[error("{architecture} has no {point}: {why}")]
    NoSuchPoint {
        /// The point's short name.
        point: String,
        /// The model's class.
        architecture: String,
        /// What it does instead.
        why: &'static str,
    },
    /// No hook has a name of that pattern.
    #[error("no hook of {architecture} matches `{pattern}`")]
    NoMatch {
        /// As the user wrote it.
        pattern: String,
        /// The model's class.
        architecture: String,
        /// The names most like it.
        near: String,
    },
    /// The model is shallower than that.
    #[error("layer {layer} does not exist: {architecture} has layers 0 to {}", n_layers - 1)]
    NoSuchLayer {
        /// As the user wrote it.
        layer: usize,
        /// Layers of the model.
        n_layers: usize,
        /// The model's class.
        architecture: String,
    },
    /// The hook lies deeper than what was loaded.
    #[error("hook `{hook}` was not among the hooks that the model was loaded for")]
    NotLoaded {
        /// The hook's module path.
        hook: String,
    },
    /// A batch that the model cannot compute.
    #[error("{message}")]
    Batch {
        /// What is wrong with it.
        message: String,
    },
    /// A sentence is longer than the model's positions.
    #[error("a sentence of {length} tokens exceeds the model's {context} positions")]
    TooLong {
        /// The sentence's tokens.
        length: usize,
        /// The model's positions.
        context: usize,
    },
    /// `DEVICE` is not a device.
    #[error("DEVICE `{name}` is not one of auto, cpu, cuda, cuda:N")]
    UnknownDevice {
        /// As the user wrote it.
        name: String,
    },
    /// The device cannot be used.
    #[error("DEVICE `{name}` is not available: {message}")]
    NoDevice {
        /// As the user wrote it.
        name: String,
        /// Why not.
        message: String,
    },
    /// The arithmetic itself failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// A file that cannot be used, and why.
    pub(crate) fn file(path: &Path, message: impl ToString) -> Self {
        Self::File { path: path.to_owned(), message: message.to_string() }
    }
}

impl Classify for ModelError {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownHook { .. }
            | Self::NoSuchPoint { .. }
            | Self::NoMatch { .. }
            | Self::NoSuchLayer { .. }
            | Self::TooLong { .. }
            | Self::UnknownDevice { .. } => Kind::Usage,
            Self::NoDevice { .. } => Kind::Unavailable,
            Self::NotLoaded { .. } | Self::Tensor(_) => Kind::Unexpected,
            _ => Kind::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownHook { known, .. } => Some(format!("hooks: {known}")),
            Self::NoSuchPoint { .. } => Some("discover_layers lists every hook".to_owned()),
            Self::NoMatch { near, .. } => {
                Some(format!("near it are {near}; discover_layers lists every hook"))
            }
            Self::NoSuchLayer { n_layers, .. } => Some(format!(
                "set LAYER_NUM between 0 and {}; discover_layers lists every hook",
                n_layers - 1
            )),
            Self::TooLong { context, .. } => Some(format!("set MAX_LENGTH to at most {context}")),
            Self::Legacy { .. } => {
                Some("load it with torch and save it again with torch.save".to_owned())
            }
            Self::Missing { what, .. } if what.contains("safetensors") => Some(
                "weights are read from safetensors and from what torch.save writes; transformers \
                 converts others with save_pretrained"
                    .to_owned(),
            ),
            Self::File { .. } | Self::MissingShard { .. } | Self::MissingTensor { .. } => {
                Some("the checkpoint is incomplete or damaged: fetch it again".to_owned())
            }
            Self::NoDevice { .. } => Some(
                "set DEVICE=cpu, or use a build with the feature `cuda` on a GPU node".to_owned(),
            ),
            _ => None,
        }
    }
}
